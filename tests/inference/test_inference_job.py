"""inference.py as a whole, in one process: what it prints and what it refuses; the conversation."""

import io
import json
import re

import numpy as np
import pytest

from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.runtime.collectives import world
from mindspeed_llm.tasks.inference import run
from mindspeed_llm.tasks.inference.chat import Conversation, chat
from mindspeed_llm.tasks.inference.loading import load
from mindspeed_llm.tasks.inference.prompting import Prompter
from mindspeed_llm.tasks.inference.terminal import Inbox, Speaker
from tests.inference.tiny_job import configs, write_job

TOOLS = [{"type": "function", "function": {"name": "weather"}}]

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("inference_job")
    write_job(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return load(configs("inference", folder))


@pytest.mark.parametrize("flags", [(), ("--bf16",)])
def test_weights_are_read_into_their_place(folder, monkeypatch, flags):
    """Nothing copies them once more: at full size there is no memory for that."""
    monkeypatch.setattr(ParameterSet, "load", lambda _, name, array: pytest.fail(f"{name} was copied"))
    parameters = load(configs("inference", folder, *flags)).model.parameters
    with open_checkpoint(folder / "checkpoint") as checkpoint:
        for name, spec in parameters.specs.items():
            expected = checkpoint.read(spec, 0, 1, "bf16" if flags else "fp32").array
            found = parameters.tensors[name].asnumpy()
            assert np.array_equal(found.view(expected.dtype), expected) and expected.any()
            assert np.shares_memory(found, parameters.memory(name))


def conversation(loaded, max_length=None, history_turns=None):
    generator = Generator([loaded.model], loaded.tokenizer.vocab_size, max_length or loaded.max_length)
    prompter = Prompter.of(loaded.configs, loaded.tokenizer, no_chat_template=False)
    return Conversation(generator, prompter, GenerationConfig(6, frozenset(loaded.tokenizer.stop_ids)), history_turns)


def blocks(text):
    pattern = r"=+ ([\w ]+) =+\nYou:\n(.*?)\n\nMindSpeed-LLM:\n(.*?)\n=+\n"
    return re.findall(pattern, text, re.DOTALL)


def test_tasks_print_their_blocks(folder, capsys):
    run(configs("inference", folder, "--task", "greedy", "do_sample", "beam_search",
                "beam_search_with_sampling", "--prompt", "A. one", "--prompt",
                "B. two", "--max-new-tokens", "6", "--num-beams", "2"))
    out = capsys.readouterr().out
    assert "ranks: 1 = tensor 1 x context 1 x data 1 x pipeline 1\n" in out
    assert re.search(rf"^successfully loaded checkpoint from {folder / 'checkpoint'} at iteration \d+ \(", out, re.M)
    found = blocks(out)
    assert [title for title, _, _ in found] == ["Greedy Search"] * 2 + ["Do Sample"] * 2 + ["Beam Search"] * 2 + [
        "Beam Search with sampling"] * 2
    assert [prompt for _, prompt, _ in found] == ["A. one", "B. two"] * 4
    assert len(re.findall(r"^elapsed: [\d.]+ s \| new tokens: \d+ \| tokens/s: [\d.]+ \| ended by: ", out, re.M)) == 2
    assert len(re.findall(r"^elapsed: [\d.]+ s \| new tokens: \d+ \| score: -[\d.]+$", out, re.M)) == 4


def test_a_single_prompt_streams_what_several_print(folder, capsys):
    flags = ("--max-new-tokens", "12", "--no-chat-template", "--task", "do_sample", "--top-k", "20", "--seed", "7")
    run(configs("inference", folder, *flags, "--prompt", "A. one"))
    streamed = blocks(capsys.readouterr().out)[0]
    run(configs("inference", folder, *flags, "--prompt", "A. one", "--prompt", "B. two"))
    assert blocks(capsys.readouterr().out)[0] == streamed
    assert streamed[2]


def test_chat_template_and_plain_prompts_differ(loaded):
    tokenizer = loaded.tokenizer
    plain = Prompter.of(loaded.configs, tokenizer, no_chat_template=True).prompt("A. one")
    chatted = Prompter.of(loaded.configs, tokenizer, no_chat_template=False).prompt("A. one")
    assert plain == tokenizer.bos_prefix + tokenizer.encode("A. one")
    assert chatted[:3] == [*tokenizer.bos_prefix, tokenizer.special("<|user|>")]
    assert chatted[-1] == tokenizer.special("<|assistant|>")


def test_system_prompt_comes_first(loaded):
    tokenizer = loaded.tokenizer
    prompter = Prompter.of(loaded.configs, tokenizer, no_chat_template=False, system_prompt="A B")
    plain = Prompter.of(loaded.configs, tokenizer, no_chat_template=False)
    system = [tokenizer.special("<|system|>"), *tokenizer.encode("\nA B")]
    for turns in (["A. one"], ["A. one", "B", "C"]):
        prefix = len(tokenizer.bos_prefix)
        assert prompter.conversation(turns) == [*tokenizer.bos_prefix, *system, *plain.conversation(turns)[prefix:]]


def test_tools_come_before_the_system_prompt(loaded):
    equipped = Prompter.of(loaded.configs, loaded.tokenizer, no_chat_template=False, system_prompt="A B",
                           tools=json.dumps(TOOLS)).prompt("A. one")
    text = loaded.tokenizer.decode(equipped, skip_special=False)
    head = r'<\|system\|>\n[^<]*## weather\n\n\{\n    "name": "weather"[^<]*<\|system\|>\nA B<\|user\|>'
    assert re.search(head, text)


def test_job_takes_the_system_prompt_tools_and_the_tokenizers_own_template(folder, monkeypatch):
    seen = []
    monkeypatch.setattr("mindspeed_llm.tasks.inference.job.Job.generate", lambda job, task: seen.append(job._prompts))
    template = folder / "tokenizer" / "chat_template.jinja"
    template.write_text("[gMASK]<sop>{{ messages[0].content }}<|user|>{{ messages[1].content }}"
                        "{{ tools[0].function.name }}")
    (folder / "tools.json").write_text(json.dumps(TOOLS))
    tools, system = ("--tools", str(folder / "tools.json")), ("--system-prompt", "A B")
    for flags in ((), system, (*system, *tools, "--hf-chat-template")):
        run(configs("inference", folder, "--prompt", "A. one", *flags))
    template.unlink()
    ((plain,), (told,), (own,)) = seen
    assert len(told) > len(plain) and told[-5:] == plain[-5:]
    tokenizer = load(configs("inference", folder)).tokenizer
    assert own == [*tokenizer.bos_prefix, *tokenizer.encode("A B"), tokenizer.special("<|user|>"),
                   *tokenizer.encode("A. oneweather")]


def test_conversation_continues_from_its_cache(loaded):
    """The second answer out of the cache is the one that a fresh pass over the whole conversation gives."""
    talk = conversation(loaded)
    first = talk.ask("A. one")
    cached = talk._cache.length
    assert cached > 0
    second = talk.ask("B. two")
    fresh = conversation(loaded)
    fresh.turns = ["A. one", first]
    assert fresh.ask("B. two") == second
    assert talk.turns == ["A. one", first, "B. two", second]


def test_conversation_drops_its_oldest_turns(loaded):
    talk = conversation(loaded, max_length=60)
    for question in ("A. one", "B. two", "C. three", "D. four"):
        talk.ask(question)
    assert talk.turns[-2] == "D. four"
    assert len(talk.turns) < 8


@pytest.mark.parametrize("history", [0, 1])
def test_conversation_forgets_what_is_older_than_its_history(loaded, history):
    """The third answer is the one of a conversation that began later."""
    talk, later = conversation(loaded, history_turns=history), conversation(loaded)
    for question in ("A. one", "B. two"):
        talk.ask(question)
    later.turns = talk.turns[4 - 2 * history:]
    assert talk.ask("C. three") == later.ask("C. three")
    assert talk.turns == later.turns and len(talk.turns) == 2 * history + 2


def test_more_tokens_that_end_an_answer(folder, loaded, tmp_path):
    tokenizer, file = loaded.tokenizer, tmp_path / "answers.jsonl"
    flags = ("--max-new-tokens", "40", "--prompt", "A. one", "--output", str(file))
    run(configs("inference", folder, *flags))
    ids = json.loads(file.read_text())["ids"]
    place, end = next((place, text) for place, text in enumerate(tokenizer.decode([token]) for token in ids)
                      if text.strip() and tokenizer.encode(text) == [ids[place]] and ids[place] not in ids[:place])
    run(configs("inference", folder, *flags, "--add-eos-token", "[MASK]", end))
    answer = json.loads(file.read_text())
    assert (answer["ids"], answer["finish_reason"]) == (ids[:place], "stop")
    with pytest.raises(UserError, match="--add-eos-token What one question is no token of this tokenizer, but"):
        run(configs("inference", folder, "--add-eos-token", "What one question"))


@pytest.mark.parametrize(("clear", "leave"), [("/clear", "/exit"), ("clear", "exit"), ("new", "quit"), ("new", "q")])
def test_chat_commands(loaded, capsys, clear, leave):
    talk = conversation(loaded)
    stdin = io.StringIO(f"A. one\n\n{clear}\nB. two\n/help\n" + "word " * 400 + f"\n{leave}\nnever read\n")
    chat(talk, Inbox(world(), stdin), speaks=True)
    out = capsys.readouterr().out
    assert out.count("MindSpeed-LLM: ") == 3
    assert "(forgotten)" in out and out.count("new forgets") == 2
    assert re.search(r"\(the prompt has \d+ tokens", out)
    assert talk.turns[0] == "B. two" and len(talk.turns) == 2
    assert stdin.read() == "never read\n"


def test_speaker_holds_incomplete_characters_back(loaded):
    out = io.StringIO()
    speaker = Speaker(loaded.tokenizer, out)
    shown = []
    for token in loaded.tokenizer.encode("\n 你A"):
        speaker.push(token)
        shown.append(out.getvalue())
    speaker.finish()
    assert out.getvalue() == "你A\n"
    assert all("\ufffd" not in text for text in shown)


@pytest.mark.parametrize(("flags", "words"), [
    (("--load", "missing"), "--load missing: no such directory"),
    (("--load", "."), "holds no checkpoint"),
    (("--num-layers", "6"), r"--num-layers \(6\) contradicts the checkpoint"),
    (("--pipeline-model-parallel-size", "3"), r"world size \(1\) must be a multiple of"),
    (("--pipeline-model-parallel-size", "2"), r"world size \(1\) must be a multiple"),
    (("--prompt", "word " * 400), r"the prompt has \d+ tokens, but a sequence may have 320"),
])
def test_mistakes_are_named(folder, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, FileNotFoundError), match=words):
        run(configs("inference", folder, *flags))


def test_no_checkpoint_at_all(folder):
    model_flags = ("--num-layers", "4", "--hidden-size", "32", "--num-attention-heads", "4", "--padded-vocab-size",
                   "352")
    with pytest.raises(UserError, match="--load must be given"):
        run(configs("inference", folder, "--load", "", *model_flags))
