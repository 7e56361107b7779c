"""A chat template that comes with a tokenizer: the ids are those of our own template of the same form."""

import json

import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.hf_template import HfTemplate
from mindspeed_llm.data.templates import Message, get_template

# Forms in the words of Jinja, with what the templates of models use: loops with conditions, stripped blocks, variables.
FORMS = {
    "glm4": """[gMASK]<sop>
{%- for item in messages -%}
    {%- if item['role'] == 'system' -%}
<|system|>
{{ item.content }}
    {%- elif item['role'] == 'user' -%}
<|user|>
{{ item['content'] }}
    {%- elif item['role'] == 'assistant' -%}
<|assistant|>
{{ item.content }}
    {%- endif -%}
{%- endfor -%}
{% if add_generation_prompt %}<|assistant|>{% endif %}""",
    "default": """{% for message in messages %}
{% if loop.previtem is defined and loop.previtem.role == 'assistant' %}{{ "\n" }}{% endif %}
{% if message.role == 'system' %}
{{ message.content }}
{% elif message.role == 'user' %}
Human: {{ message.content }}
{% else %}
Assistant:{{ message.content }}{{ eos_token }}
{%- continue %}
{% endif %}
{% endfor %}
Assistant:""",
}
CHATS = [
    ["What is the capital of France?"],
    ["What is <|user|>?\n", "Paris <sop>.", "<|assistant|>[gMASK] 你好，世界！ \ue000", "<|endoftext|>",
     " {{ 7 }} "],
]


def written(folder, text=None, **config):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if text is not None:
        (folder / "chat_template.jinja").write_text(text)
    return str(folder)


def messages(chat, system=""):
    turns = [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(chat)]
    return [Message("system", system), *turns] if system else turns


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("system", ["", "You are <|system|> a bot."])
def test_ids_are_those_of_the_same_form(glm_tokenizer, tmp_path, form, chat, system):
    expected = get_template(form).encode_chat(glm_tokenizer, messages(chat, system))
    names = {"eos_token": {"content": "<|endoftext|>"}, "added_tokens_decoder": {}}
    files = [written(tmp_path / "a", FORMS[form], chat_template="not this", **names),
             written(tmp_path / "b", chat_template=FORMS[form], **names),
             written(tmp_path / "c", chat_template=[{"name": "tool_use", "template": "x"},
                                                    {"name": "default", "template": FORMS[form]}], **names)]
    for folder in files:
        found = HfTemplate(folder).encode_chat(glm_tokenizer, messages(chat, system))
        assert glm_tokenizer.decode(found, skip_special=False) == glm_tokenizer.decode(expected, skip_special=False)
        assert found == expected
        assert HfTemplate(folder).assistant == get_template(form).assistant


def test_what_templates_find(glm_tokenizer, tmp_path):
    """JSON as it is, not escaped for HTML; the date; nothing of tools."""
    text = "{{ {'a': '<é>'} | tojson }}{{ strftime_now('%Y') | length }}{{ tools is none }}"
    ids = HfTemplate(written(tmp_path, text)).encode_chat(glm_tokenizer, messages(CHATS[0]))
    assert glm_tokenizer.decode(ids) == '{"a": "<é>"}4True'


def test_tools_are_text(glm_tokenizer, tmp_path):
    tools = [{"type": "function", "function": {"name": "weather", "description": "<|user|> {é}"}}]
    text = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|user|>"
    ids = HfTemplate(written(tmp_path, text)).encode_chat(glm_tokenizer, messages(CHATS[0]), json.dumps(tools))
    assert ids == [*glm_tokenizer.bos_prefix, *glm_tokenizer.encode(json.dumps(tools[0], ensure_ascii=False)),
                   glm_tokenizer.special("<|user|>")]


@pytest.mark.parametrize(("text", "words"), [
    ("{% if %}", "is no Jinja"), ("{{ raise_exception('no system') }}", "does not take this conversation: no system"),
    ("{{ messages.append(1) }}", "does not take"), ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "does not take"),
    ("{{ messages[9].content.x }}", "does not take"), ("{{ 1 // 0 }}", "does not take")])
def test_templates_that_are_refused(glm_tokenizer, tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        HfTemplate(written(tmp_path, text)).encode_chat(glm_tokenizer, messages(CHATS[0]))


def test_directories_without_a_template(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither chat_template.jinja nor"):
        HfTemplate(written(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        HfTemplate(str(tmp_path))
