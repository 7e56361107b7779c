"""A served conversation becomes the prompt that the model's own chat template makes of it, to the byte."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.templates import TEMPLATES, Message, get_template
from mindspeed_llm.tasks.inference.serving.protocol import ChatMessage
from tests.golden.chat_cases import CASES

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "chat_prompts.json").read_text(encoding="utf-8"))
READ = TypeAdapter(ChatMessage)


def prompt(tokenizer, name, messages, tools):
    turns = [turn for message in messages for turn in READ.validate_python(message).turns()]
    described = json.dumps([tool["function"] for tool in tools]) if tools else ""
    return get_template(name).encode_chat(tokenizer, turns, described)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", RECORDED)
def test_prompts_are_those_of_the_models_own_templates(glm_tokenizer, name, case):
    ids = prompt(glm_tokenizer, name, *CASES[case])
    assert glm_tokenizer.decode(ids, skip_special=False) == RECORDED[name]["prompts"][case]
    marks = [glm_tokenizer.special(mark) for mark in ("<|user|>", "<|assistant|>", "<|system|>", "<|observation|>")]
    users = sum(message["role"] == "user" for message in CASES[case][0])
    assert sum(token == marks[0] for token in ids) == users     # a mark in a message is text


def test_without_tools_it_is_the_prompt_of_training(glm_tokenizer):
    chat = [Message("user", "A"), Message("assistant", "B"), Message("user", "C")]
    for name in TEMPLATES:
        if name not in ("qwen3", "glm4_z1"):   # which has no GLM tokenizer; which opens thoughts
            template = get_template(name)
            assert template.encode_chat(glm_tokenizer, [Message("system", "S"), *chat]) == template.encode_prompt(
                glm_tokenizer, chat, system="S")
            assert template.encode_chat(glm_tokenizer, chat) == template.encode_prompt(glm_tokenizer, chat)


def test_an_answer_may_be_begun(glm_tokenizer):
    """Z1 then does not think."""
    for name in ("glm4", "glm4_z1"):
        ids = get_template(name).encode_chat(glm_tokenizer, [Message("user", "A")], beginning="weather\n")
        assert glm_tokenizer.decode(ids, skip_special=False) == "[gMASK]<sop><|user|>\nA<|assistant|>weather\n"


def test_what_is_no_question_is_refused(glm_tokenizer):
    template = get_template("glm4")
    for turns in ([], [Message("system", "S")], [Message("user", "A"), Message("assistant", "B")]):
        with pytest.raises(UserError, match="must end with a message of the user"):
            template.encode_chat(glm_tokenizer, turns)
    with pytest.raises(UserError, match="prompt type alpaca has no form for tool calls"):
        get_template("alpaca").encode_chat(glm_tokenizer, [Message("user", "A")], '[{"name": "x"}]')
