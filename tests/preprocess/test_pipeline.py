"""preprocess_data.py's work: files under their documented names, the same for any number of workers, or nothing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.indexed_dataset import IndexedDataset
from mindspeed_llm.data.instruction_dataset import InstructionDataset, PackedRows
from mindspeed_llm.tasks.preprocess import pipeline, run
from mindspeed_llm.tasks.preprocess.lengths import histogram

ALPACA = [
    {"instruction": "Capital of France?", "input": "", "output": "Paris."},
    {"instruction": "Translate", "input": "world", "output": "世界", "system": "Be brief."},
    {"instruction": "And Italy?", "output": "Rome.", "history": [["Capital of France?", "Paris."]]},
    {"instruction": "Nothing", "input": None, "output": ""},
]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
                       {"from": "human", "value": "unanswered"}]},
    {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Weather?"},
                       {"from": "function_call", "value": '{"name": "weather", "arguments": {}}'},
                       {"from": "observation", "value": "sunny"}, {"from": "gpt", "value": "Sunny"}],
     "tools": '[{"name": "weather"}]'},
    {"conversations": [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Hi"},
                       {"from": "gpt", "value": "?"}]},
]


def save(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return str(path)


@pytest.fixture
def base(tmp_path, tokenizer_dir):
    return DataConfig(output_prefix=str(tmp_path / "out" / "d"), tokenizer_name_or_path=tokenizer_dir,
                      prompt_type="glm4", seq_length=64)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def spelled(tokenizer, prefix, row=0):
    return tokenizer.decode(IndexedDataset(prefix)[row].tolist(), skip_special=False)


def test_pretraining_documents(base, tmp_path, glm_tokenizer):
    texts = ["first 文档", "", "second<|user|>", "third\n"]
    config = dataclasses.replace(base, input=save(tmp_path / "in.jsonl", [{"text": text} for text in texts]),
                                 append_eod=True)
    assert run(config) == [f"{base.output_prefix}_text_document"]
    assert listing(tmp_path / "out") == ["d_text_document.bin", "d_text_document.idx"]
    data = IndexedDataset(f"{base.output_prefix}_text_document")
    assert data.dtype == np.uint16 and len(data) == 3
    assert all(data[i][-1] == glm_tokenizer.eos_id for i in range(3))
    assert [glm_tokenizer.decode(data[i].tolist()) for i in range(3)] == [text for text in texts if text]
    run(dataclasses.replace(config, append_eod=False))
    assert IndexedDataset(f"{base.output_prefix}_text_document")[0][-1] != glm_tokenizer.eos_id


def test_one_data_set_per_json_key(base, tmp_path, glm_tokenizer):
    config = dataclasses.replace(base, input=save(tmp_path / "in.jsonl", [{"title": "T", "body": "B", "n": 3}]),
                                 json_keys=("title", "body"))
    assert [os.path.basename(prefix) for prefix in run(config)] == ["d_title_document", "d_body_document"]
    assert spelled(glm_tokenizer, f"{base.output_prefix}_body_document") == "B"
    with pytest.raises(UserError, match="row 1: column 'n' holds int"):
        run(dataclasses.replace(config, json_keys=("n",)))


def test_alpaca(base, tmp_path, glm_tokenizer):
    config = dataclasses.replace(base, input=save(tmp_path / "in.json", ALPACA),
                                 handler_name="AlpacaStyleInstructionHandler")
    run(config)
    assert listing(tmp_path / "out") == [f"d_packed_{field}_document.{end}" for field in
                                         ("attention_mask", "input_ids", "labels") for end in ("bin", "idx")]
    rows = PackedRows(base.output_prefix)
    assert len(rows) == 3 and not rows.packed
    prefix = f"{base.output_prefix}_packed_input_ids_document"
    assert spelled(glm_tokenizer, prefix, 1) == (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\nTranslate\nworld<|assistant|>\n世界<|endoftext|>")
    assert spelled(glm_tokenizer, prefix, 2).endswith(
        "<|assistant|>\nParis.<|user|>\nAnd Italy?<|assistant|>\nRome.<|endoftext|>")
    ids, mask, labels = rows.row(0)
    assert mask.tolist() == [1] * ids.size
    learned = [label for label in labels if label >= 0]
    assert glm_tokenizer.decode(learned, skip_special=False) == "\nParis.<|endoftext|>"


def test_rows_are_cut_to_the_sequence_length(base, tmp_path):
    long = [{"instruction": "capital " * 100, "output": "Paris " * 100}]
    run(dataclasses.replace(base, input=save(tmp_path / "in.json", long), handler_name="AlpacaStyleInstructionHandler"))
    ids, _, labels = PackedRows(base.output_prefix).row(0)
    assert ids.size == 64 and (labels != -100).sum() > 10


def test_sharegpt(base, tmp_path, glm_tokenizer, caplog):
    caplog.set_level("INFO")
    run(dataclasses.replace(base, input=save(tmp_path / "in.json", SHAREGPT), seq_length=512,
                            handler_name="SharegptStyleInstructionHandler"))
    prefix = f"{base.output_prefix}_packed_input_ids_document"
    assert len(IndexedDataset(prefix)) == 2
    assert spelled(glm_tokenizer, prefix) == "[gMASK]<sop><|user|>\nHi<|assistant|>\nHello<|endoftext|>"
    assert spelled(glm_tokenizer, prefix, 1).endswith(
        "<|user|>\nWeather?<|assistant|>weather\n{}<|observation|>\nsunny<|assistant|>\nSunny<|endoftext|>")
    assert "1 of them skipped; questions and answers do not take turns: 1" in caplog.text


def test_openai_style_messages(base, tmp_path, glm_tokenizer):
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    run(dataclasses.replace(base, input=save(tmp_path / "in.json", rows),
                            handler_name="SharegptStyleInstructionHandler"))
    assert "Hello<|endoftext|>" in spelled(glm_tokenizer, f"{base.output_prefix}_packed_input_ids_document")


GLM4_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def test_the_conversation_files_of_glm4(base, tmp_path, glm_tokenizer):
    """Tools inside the system message, tool calls named by `metadata`, results of role `observation`."""
    rows = [{"messages": [
        {"role": "system", "content": "Be brief.", "tools": [GLM4_TOOL]},
        {"role": "user", "content": "Paris?"}, {"role": "assistant", "metadata": "weather", "content": '{"city": 1}'},
        {"role": "observation", "content": "sunny"}, {"role": "assistant", "metadata": "", "content": "Sunny."}]},
        {"messages": [{"role": "system", "content": "", "tools": [GLM4_TOOL]}, {"role": "user", "content": "Hi"},
                      {"role": "assistant", "content": "Hello"}]}]
    config = dataclasses.replace(base, input=save(tmp_path / "in.jsonl", rows), seq_length=4096,
                                 handler_name="SharegptStyleInstructionHandler")
    run(config)
    prefix = f"{base.output_prefix}_packed_input_ids_document"
    first, second = spelled(glm_tokenizer, prefix), spelled(glm_tokenizer, prefix, 1)
    assert first.startswith("[gMASK]<sop><|system|>\nBe brief.你是一个名为 ChatGLM 的人工智能助手。")
    assert '# 可用工具\n\n## weather\n\n{\n    "name": "weather",' in first and "## weather" in second
    assert first.endswith('<|user|>\nParis?<|assistant|>weather\n{"city": 1}<|observation|>\nsunny<|assistant|>\n'
                          "Sunny.<|endoftext|>")
    rows[0]["messages"][0]["tools"] = 5
    with pytest.raises(UserError, match="column 'tools' holds int"):
        run(dataclasses.replace(config, input=save(tmp_path / "in.jsonl", rows)))


def test_columns_may_have_other_names(base, tmp_path, glm_tokenizer):
    alpaca = [{"question": "Hi", "output": "Hello", "input": "not to be read", "system": "no", "note": "S"}]
    config = dataclasses.replace(base, handler_name="AlpacaStyleInstructionHandler",
                                 input=save(tmp_path / "a.json", alpaca))
    run(dataclasses.replace(config, map_keys={"prompt": "question", "query": "", "system": "note"}))
    prefix = f"{base.output_prefix}_packed_input_ids_document"
    assert spelled(glm_tokenizer, prefix) == (
        "[gMASK]<sop><|system|>\nS<|user|>\nHi<|assistant|>\nHello<|endoftext|>")
    turns = [{"who": "USER", "says": "Hi"}, {"who": "BOT", "says": "Hello"}]
    run(dataclasses.replace(
        config, handler_name="SharegptStyleInstructionHandler", input=save(tmp_path / "s.json", [{"chat": turns}]),
        map_keys={"messages": "chat", "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "USER",
                                               "assistant_tag": "BOT"}}))
    assert spelled(glm_tokenizer, prefix) == "[gMASK]<sop><|user|>\nHi<|assistant|>\nHello<|endoftext|>"
    for keys, message in (({"question": "x"}, "'question' is not known: use prompt"), ({"prompt": 5}, "prompt is 5"),
                          ({"tags": "x"}, "tags holds 'x'"), ({"response": ""}, "leaves out the column 'output'"),
                          ({"prompt": "frage"}, "row 1 has no column 'frage'"), ({"tags": {"x": "y"}}, "'x' is not")):
        with pytest.raises(UserError, match=message):
            run(dataclasses.replace(config, map_keys=keys))
    with pytest.raises(UserError, match="--map-keys.*--json-keys"):
        run(dataclasses.replace(config, map_keys={"prompt": "x"}, handler_name="GeneralPretrainHandler"))


@pytest.mark.parametrize("parallel", [{}, {"workers": 2, "n_subs": 3}])
def test_a_few_bad_rows_may_be_left_out(base, tmp_path, caplog, parallel):
    lines = [json.dumps({"text": f"row {i}"}) for i in range(600)]
    lines[3], lines[400], lines[500] = '{"text": 5}', "xx", '{"other": ""}'
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    config = dataclasses.replace(base, input=str(tmp_path / "in.jsonl"), **parallel)
    run(dataclasses.replace(config, max_bad_rows=3))
    assert len(IndexedDataset(f"{base.output_prefix}_text_document")) == 597
    assert "3 bad rows left out (--max-bad-rows 3)" in caplog.text
    for text in ("in.jsonl row 4: column 'text' holds int", "in.jsonl line 401 is not JSON", "row 501 has no column"):
        assert text in caplog.text
    with pytest.raises(UserError, match="more than --max-bad-rows 2 rows cannot be read; the first: .*in.jsonl row 4"):
        run(dataclasses.replace(config, max_bad_rows=2, output_prefix=str(tmp_path / "new" / "d")))
    assert listing(tmp_path) == ["in.jsonl", "out"]


def test_lengths_are_reported(base, tmp_path, caplog, glm_tokenizer):
    caplog.set_level("INFO")
    texts = ["a" * (i % 7 + 1) for i in range(70)] + ["b c " * 300]
    run(dataclasses.replace(base, input=save(tmp_path / "in.jsonl", [{"text": text} for text in texts]), report=True))
    sizes = [len(glm_tokenizer.encode(text)) for text in texts]
    assert f"71 sequences, {sum(sizes)} tokens" in caplog.text and f"longest {max(sizes)}" in caplog.text
    assert " 70 ####" in caplog.text
    assert (tmp_path / "out" / "d_lengths.png").read_bytes().startswith(b"\x89PNG")
    counts, edges = histogram(np.array(sizes))
    assert counts.sum() == 71 and edges[-1] == max(sizes) + 1 and 2 <= counts.size <= 21


@pytest.mark.parametrize("handler, row", [
    ("AlpacaStylePairwiseHandler", {"instruction": "Hi", "chosen": "Hello", "rejected": "No"}),
    ("SharegptStylePairwiseHandler", {"conversations": [{"from": "human", "value": "Hi"}],
                                      "chosen": {"from": "gpt", "value": "Hello"},
                                      "rejected": {"from": "gpt", "value": "No"}}),
])
def test_pairwise(base, tmp_path, glm_tokenizer, handler, row):
    prefixes = run(dataclasses.replace(base, input=save(tmp_path / "in.json", [row]), handler_name=handler))
    names = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
    assert prefixes == [f"{base.output_prefix}_packed_{name}_document" for name in names]
    texts = [spelled(glm_tokenizer, prefixes[0]), spelled(glm_tokenizer, prefixes[2])]
    assert texts == [f"[gMASK]<sop><|user|>\nHi<|assistant|>\n{answer}<|endoftext|>" for answer in ("Hello", "No")]
    labels = IndexedDataset(prefixes[3])[0]
    assert glm_tokenizer.decode([label for label in labels if label >= 0]) == "\nNo"


@pytest.mark.parametrize("handler, prompt, answer", [
    ("AlpacaStylePairwiseHandler", {"instruction": "Hi"}, str),
    ("SharegptStylePairwiseHandler", {"conversations": [{"from": "human", "value": "Hi"}]},
     lambda text: {"from": "gpt", "value": text}),
])
def test_pairs_that_teach_nothing_are_counted_by_reason(base, tmp_path, caplog, handler, prompt, answer):
    caplog.set_level("INFO")
    long = "Paris " * 100
    answers = [("Hello", "No"), ("Hello", "Hello"), ("", "No"), ("Hello", ""), (long + "yes", long + "no")]
    rows = [prompt | {"chosen": answer(chosen), "rejected": answer(rejected)} for chosen, rejected in answers]
    run(dataclasses.replace(base, input=save(tmp_path / "in.json", rows), handler_name=handler, seq_length=64))
    for reason in ("chosen and rejected answer are equal: 1", "no answer in column 'chosen': 1",
                   "no answer in column 'rejected': 1",
                   "chosen and rejected answer are equal within --seq-length 64: 1"):
        assert f"; {reason}" in caplog.text
    assert "5 rows in" in caplog.text and "4 of them skipped" in caplog.text
    with pytest.raises(UserError, match=r"in.json: none of the 1 rows gives a sample: chosen and rejected"):
        run(dataclasses.replace(base, input=save(tmp_path / "in.json", rows[1:2]), handler_name=handler))


def test_packing_keeps_conversations_whole(base, tmp_path, glm_tokenizer):
    rows = [{"instruction": f"Question {i}", "output": "x" * (i % 17 + 1)} for i in range(60)]
    config = dataclasses.replace(base, input=save(tmp_path / "in.json", rows), seq_length=128,
                                 handler_name="AlpacaStyleInstructionHandler")
    run(dataclasses.replace(config, output_prefix=str(tmp_path / "loose")))
    run(dataclasses.replace(config, pack=True))
    assert len(listing(tmp_path / "out")) == 6
    loose, packed = PackedRows(str(tmp_path / "loose")), PackedRows(base.output_prefix)
    assert packed.packed and len(packed) < 60 / 2
    found = []
    for number in range(len(packed)):
        ids, mask, labels = packed.row(number)
        assert ids.size == 128 and (labels[mask == 0] == -100).all() and (ids[mask == 0] == glm_tokenizer.pad_id).all()
        assert (np.diff(mask[mask > 0]) >= 0).all()
        found += [(ids[mask == k].tolist(), labels[mask == k].tolist()) for k in range(1, mask.max() + 1)]
    originals = [(row[0].tolist(), row[2].tolist()) for row in map(loose.row, range(60))]
    assert sorted(found) == sorted(originals)
    sample = InstructionDataset(packed, (0, len(packed)), None, 128, 1, glm_tokenizer.pad_id)[0]
    assert sample["cu_seqlens"][-1] == 128 and sample["cu_seqlens"].size > 3


def test_workers_do_not_change_the_result(base, tmp_path, monkeypatch):
    rows = [{"text": f"document {i} " * (i % 9 + 1)} for i in range(1000)]
    config = dataclasses.replace(base, input=save(tmp_path / "in.jsonl", rows))
    monkeypatch.setattr(pipeline, "CHUNK_ROWS", 30)
    run(dataclasses.replace(config, output_prefix=str(tmp_path / "one")))
    run(dataclasses.replace(config, output_prefix=str(tmp_path / "two"), workers=2))
    run(dataclasses.replace(config, output_prefix=str(tmp_path / "three"), workers=2, n_subs=3))
    for end in ("bin", "idx"):
        one, two, three = (tmp_path / f"{name}_text_document.{end}" for name in ("one", "two", "three"))
        assert one.read_bytes() == two.read_bytes() == three.read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_row_stops_everything_and_leaves_nothing(base, tmp_path, workers):
    rows = [{"text": "fine"}] * 700 + [{"text": 5}] + [{"text": "fine"}] * 700
    config = dataclasses.replace(base, input=save(tmp_path / "in.jsonl", rows), workers=workers)
    with pytest.raises(UserError, match="in.jsonl row 701: column 'text' holds int"):
        run(config)
    assert listing(tmp_path) == ["in.jsonl"]


def test_a_killed_worker_is_reported(base, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_start_worker", _die)
    config = dataclasses.replace(base, input=save(tmp_path / "in.jsonl", [{"text": "x"}] * 10), workers=2)
    with pytest.raises(UserError, match="worker process died"):
        run(config)
    assert listing(tmp_path) == ["in.jsonl"]


def _die(config, handler):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("threads, kind", [(0, "fork"), (1, "spawn")])
def test_workers_are_copies_only_where_no_thread_runs(base, tmp_path, threads, kind):
    save(tmp_path / "in.jsonl", [{"text": f"row {number}"} for number in range(600)])
    config = dataclasses.replace(base, input=str(tmp_path / "in.jsonl"))
    run(config)
    program = (
        "import threading\n"
        "from mindspeed_llm.config.data import DataConfig\n"
        "from mindspeed_llm.tasks.preprocess import pipeline\n"
        "get_context = pipeline.multiprocessing.get_context\n"
        "pipeline.multiprocessing.get_context = lambda kind: (print(kind), get_context(kind))[1]\n"
        "if __name__ == '__main__':\n"
        f"    [threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range({threads})]\n"
        f"    pipeline.run(DataConfig(input={config.input!r}, output_prefix={str(tmp_path / 'again')!r}, workers=2,\n"
        f"                            tokenizer_name_or_path={base.tokenizer_name_or_path!r}))\n")
    output = subprocess.run([sys.executable, "-c", program], env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, check=True,
                            capture_output=True, text=True).stdout
    assert output == f"{kind}\n"
    for end in ("bin", "idx"):
        assert (tmp_path / f"again_text_document.{end}").read_bytes() == (
            tmp_path / f"out/d_text_document.{end}").read_bytes()


def test_termination_leaves_nothing(base, tmp_path):
    save(tmp_path / "in.jsonl", [{"text": "some text " * 200}] * 20000)
    program = (
        "from mindspeed_llm.config.data import DataConfig\n"
        "from mindspeed_llm.tasks.preprocess import run\n"
        "if __name__ == '__main__':\n"
        f"    run(DataConfig(input={str(tmp_path / 'in.jsonl')!r}, output_prefix={base.output_prefix!r},\n"
        f"                   tokenizer_name_or_path={base.tokenizer_name_or_path!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not (tmp_path / "out").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "out").exists() and process.poll() is None
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM and listing(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize("change, message", [
    (dict(input="/nowhere/in.json"), "/nowhere/in.json: no such file"),
    (dict(tokenizer_name_or_path=None), "--tokenizer-name-or-path"),
    (dict(tokenizer_name_or_path="/nowhere"), "--tokenizer-name-or-path /nowhere"),
    (dict(output_prefix=None), "--output-prefix"),
    (dict(workers=0), "--workers 0"),
    (dict(handler_name="Handler"), "--handler-name Handler.*GeneralPretrainHandler"),
    (dict(handler_name="AlpacaStyleInstructionHandler", prompt_type=None), "needs --prompt-type"),
    (dict(handler_name="AlpacaStyleInstructionHandler"), "no column 'instruction'; its columns are: text"),
    (dict(handler_name="SharegptStyleInstructionHandler"), "no column 'conversations'"),
    (dict(pack=True), "--pack"),
    (dict(json_keys=("content",)), "no column 'content'; its columns are: text"),
])
def test_bad_input_is_named_and_leaves_nothing(base, tmp_path, change, message):
    config = dataclasses.replace(base, input=save(tmp_path / "in.jsonl", [{"text": "x"}]))
    with pytest.raises((UserError, FileNotFoundError), match=message):
        run(dataclasses.replace(config, **change))
    assert listing(tmp_path) == ["in.jsonl"]


def test_rows_that_give_nothing_are_an_error(base, tmp_path):
    config = dataclasses.replace(base, input=save(tmp_path / "in.jsonl", [{"text": ""}, {"text": None}]))
    with pytest.raises(UserError, match=r"none of the 2 rows gives a sample: no text in column 'text' \(2\)"):
        run(config)
    assert listing(tmp_path) == ["in.jsonl"]


def test_progress_is_logged(base, tmp_path, caplog):
    caplog.set_level("INFO")
    run(dataclasses.replace(base, input=save(tmp_path / "in.jsonl", [{"text": "x"}] * 600), log_interval=200))
    assert "processed 256 rows" in caplog.text and "processed 600 rows" in caplog.text
    assert "wrote 600 documents, 600 tokens" in caplog.text


def test_no_mindspore_is_imported():
    program = ("import sys, mindspeed_llm.tasks.preprocess, mindspeed_llm.data.batch, mindspeed_llm.data.samplers, "
               "mindspeed_llm.data.templates, mindspeed_llm.data.tokenizer_training\n"
               "print([name for name in ('mindspore', 'torch', 'transformers') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
