"""`--eval-task mmlu` in a training job: what is logged, and a training that goes on as without it.

Under parallel sizes: tests/distributed/test_validation_samples.py.
"""

import re

import numpy as np
import pytest

from mindspeed_llm import training
from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.config.command_line import parse
from mindspeed_llm.tasks.evaluation.while_training import TrainingBenchmark
from tests.inference.tiny_job import QUESTIONS, SUBJECTS, write_job
from tests.training.tiny_job import SCHEDULE, SHAPE, write_ramps

MMLU = ("--eval-task mmlu --eval-task-interval 2 --no-chat-template --num-shots 1 --max-eval-samples {questions} "
        "--evaluation-batch-size 3 --task-data-path {folder}/mmlu/test --tensorboard-dir {folder}/board")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("while_training")
    write_job(folder)
    write_ramps(folder / "text")

    def run(name, more=""):
        configs = parse("pretrain", [
            *SHAPE, *SCHEDULE, "--padded-vocab-size", "352", "--max-position-embeddings", "320", "--train-iters", "4",
            "--data-path", f"{folder}/text", "--tokenizer-name-or-path", f"{folder}/tokenizer", "--split", "100,0,0",
            "--save", f"{folder}/{name}", *more.format(folder=folder, questions=QUESTIONS - 1).split()])
        training.run(configs, TrainingBenchmark if configs.train.eval_task else None)
        with open_checkpoint(folder / name) as saved:
            return {name: saved.read_global(name).array.copy() for name in saved.names()}
    return run


def test_mmlu_is_logged_and_training_keeps_its_bits(train, capsys, monkeypatch):
    scalars = []
    monkeypatch.setattr("tensorboardX.SummaryWriter.add_scalar", lambda self, *entry: scalars.append(entry))
    plain = train("plain")
    losses = re.findall(r"lm loss: (\S+)", capsys.readouterr().out)
    examined = train("examined", MMLU)
    output = capsys.readouterr().out
    assert re.findall(r"lm loss: (\S+)", output) == losses and len(losses) == 4
    assert all(np.array_equal(plain[name], examined[name]) for name in plain) and plain.keys() == examined.keys()
    questions = len(SUBJECTS) * (QUESTIONS - 1)
    found = re.findall(rf"^ mmlu at iteration (\d) \| questions: {questions} \| acc: (\S+) \| standard error: \S+ \| "
                       r"humanities: (\S+) \| other: (\S+) \|$", output, re.MULTILINE)
    assert [iteration for iteration, *_ in found] == ["2", "4"]
    told = {(tag, iteration): value for tag, value, iteration in scalars}
    for iteration, *values in found:
        for tag, value in zip(("mmlu acc", "mmlu acc/humanities", "mmlu acc/other"), values, strict=True):
            assert f"{told[tag, int(iteration)]:.6f}" == value
