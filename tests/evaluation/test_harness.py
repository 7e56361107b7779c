"""The bridge to lm-evaluation-harness; where that is not installed (`pip install '.[harness]'`) there is nothing to
test.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.evaluation.job import run
from mindspeed_llm.tasks.evaluation.prompts import STANDARD
from mindspeed_llm.tasks.evaluation.question_files import Source
from tests.inference.tiny_job import configs, write_job

pytest.importorskip("lm_eval")

from mindspeed_llm.tasks.evaluation import harness  # noqa: E402


def requests(*arguments):
    return [SimpleNamespace(args=argument) for argument in arguments]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("harness")
    write_job(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    from lm_eval.api.registry import get_model

    from mindspeed_llm.tasks.evaluation.harness import HarnessModel
    assert get_model("mindspeed_llm") is HarnessModel
    return HarnessModel(load=str(folder / "checkpoint"), tokenizer=str(folder / "tokenizer"), batch_size="2",
                        device="cpu")


def test_choices_are_those_of_the_task(folder, model):
    from mindspeed_llm.tasks.evaluation.eval_impl import TASKS
    asked, wanted = [], []
    subjects = TASKS["mmlu"].read(Source(folder / "mmlu" / "test", 1, 3))
    for subject in subjects:
        for question in subject.questions:
            text = STANDARD.write(subject.name, subject.shots, question)
            asked += [(text, f" {letter}") for letter in "ABCD"]
    found = model.loglikelihood(requests(*asked), disable_tqdm=True)
    for result in run(configs("evaluation", folder, "--num-shots", "1", "--max-eval-samples", "3", "--no-chat-template",
                              "--scoring", "logprob")):
        wanted += [value for question in result.questions for value in question.log_probs]
    np.testing.assert_allclose([value for value, _ in found], wanted, rtol=0, atol=1e-5)


def test_rolling_and_writing(model):
    text = "A. one two three four Answer: B"
    ids = model.tok_encode(text)
    (whole,) = model.loglikelihood_rolling(requests((text,)))
    ((value, _),) = model._loglikelihood_tokens([(None, [model.eot_token_id], ids)])
    assert whole == pytest.approx(value, abs=1e-5)
    (answer,) = model.generate_until(requests(("A. one", {"until": [], "max_gen_toks": 12})))
    (cut,) = model.generate_until(requests(("A. one", {"until": [answer[3:5]], "max_gen_toks": 12})))
    assert len(answer) > 5 and cut == answer[:answer.index(answer[3:5])]
    with pytest.raises(UserError, match="the task samples"):
        model.generate_until(requests(("A", {"do_sample": True, "temperature": 0.7})))


def test_chat_template_is_the_projects(model):
    text = model.apply_chat_template([{"role": "user", "content": "one"}])
    assert text == "<|user|>\none<|assistant|>" and model.chat_template(True) == "glm4"
    special = model._own.special_tokens
    assert model.tok_encode(text)[:3] == [special["[gMASK]"], special["<sop>"], special["<|user|>"]]


def test_unknown_arguments():
    from mindspeed_llm.tasks.evaluation.harness import HarnessModel
    with pytest.raises(UserError, match="--model_args pretrained is not known"):
        HarnessModel(load="x", tokenizer="y", pretrained="z")


def test_command_of_the_harness_finds_the_model(folder, tmp_path):
    """`lm_eval --model mindspeed_llm`, as it is installed: the file of a task without questions enters the model."""
    plug = Path(harness.__file__).with_name("lm_eval.yaml")
    (tmp_path / "words.jsonl").write_text('{"text": "A. one"}\n{"text": "Answer"}\n')
    (tmp_path / "words.yaml").write_text(json.dumps({
        "task": "words", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{tmp_path}/words.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{text}}",
        "doc_to_choice": ["A", "B"], "doc_to_target": 0}))
    command = [sys.executable, "-m", "lm_eval", "--model", "mindspeed_llm", "--model_args",
               f"load={folder}/checkpoint,tokenizer={folder}/tokenizer", "--tasks", f"{plug},{tmp_path}/words.yaml",
               "--output_path", str(tmp_path / "out"), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    run_ = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=120)
    assert run_.returncode == 0, run_.stderr
    assert "|words|" in run_.stdout and "mindspeed_llm ({" in run_.stdout
    (file,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(file.read_text())["results"]["words"]["sample_len"] == 2
