"""Preference tuning in one process: PyTorch's numbers, a whole run, what it reports, and mistakes."""

import re

import numpy as np
import pytest

from mindspeed_llm import kernels
from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.runtime import device
from mindspeed_llm.training.objectives.preference_loss import METRICS
from tests.golden.preference_trial import CASES, PreferenceTrial
from tests.training.tiny_job import write_documents

FIELD = r" \| ".join([r"peak memory \(MB\): \S+", *(rf"{name}: (\S+)" for name in METRICS)]) + r" \|$"


def write_pairs(prefix, pairs=12):
    """Prompts of 5 ids, of which the chosen answer repeats the last, and the rejected one counts down."""
    rng = np.random.default_rng(1)
    columns = {name: [] for name in ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")}
    for _ in range(pairs):
        prompt = rng.integers(20, 200, 5)
        for answer, ids in (("chosen", np.full(rng.integers(2, 7), prompt[-1])),
                            ("rejected", prompt[-1] - 1 - np.arange(rng.integers(2, 7)))):
            columns[f"{answer}_input_ids"].append(np.concatenate([prompt, ids]))
            columns[f"{answer}_labels"].append(np.concatenate([np.full(5, -100), ids]))
    for name, documents in columns.items():
        write_documents(f"{prefix}_packed_{name}_document", documents)
    return str(prefix)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs")


@pytest.fixture
def dpo(train, pairs, tmp_path):
    """Runs preference tuning from a checkpoint that is the reference as well."""
    train("--train-iters", 1, "--save", tmp_path / "start")

    def run(*flags):
        train("--stage", "dpo", "--is-pairwise-dataset", "--no-pad-to-seq-lengths", "--data-path", pairs, "--load",
              tmp_path / "start", "--ref-model", tmp_path / "start", "--finetune", "--lr", 3e-3, "--lr-decay-style",
              "constant", *flags)
    return run


def reported(output):
    """The metrics of every iteration line, in the order of METRICS."""
    return np.array(re.findall(FIELD, output, re.MULTILINE), float)


@pytest.mark.parametrize("micro_batch, pad", [(1, False), (4, True)], ids=["one by one", "together, padded"])
def test_losses_metrics_and_gradients_are_pytorchs(micro_batch, pad):
    device.setup()
    kernels.setup()
    for case in CASES:
        errors = PreferenceTrial(case, ParallelConfig(), micro_batch, pad=pad).measure()
        assert max(errors.values()) < 5e-6, (case, errors)


def test_rewards_part_and_are_reported(dpo, tmp_path, capsys, monkeypatch):
    scalars = []
    monkeypatch.setattr("tensorboardX.SummaryWriter.add_scalar", lambda self, *entry: scalars.append(entry))
    dpo("--train-iters", 12, "--tensorboard-dir", tmp_path / "tb", "--split", "80,20,0", "--eval-iters", 1,
        "--eval-interval", 12)
    output = capsys.readouterr().out
    found = reported(output)
    losses = [float(text) for text in re.findall(r"lm loss: (\S+)", output)]
    assert len(found) == len(losses) == 12
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5) and abs(found[0, :4]).max() < 1e-4
    assert losses[-1] < 0.65 and found[-1, 2] == 1.0 and found[-1, 3] > 0.1
    np.testing.assert_allclose(found[:, 0] - found[:, 1], found[:, 3], atol=1e-4)
    last = {tag: value for tag, value, iteration in scalars if iteration == 12}
    np.testing.assert_allclose([last[name] for name in METRICS], found[-1], rtol=1e-4, atol=1e-6)
    (accuracy,) = re.findall(r"validation loss at iteration 12 .*rewards/accuracies: (\S+) \|", output)
    assert float(accuracy) == last["rewards/accuracies validation"]


def test_a_resumed_run_goes_on_exactly(dpo, tmp_path):
    dpo("--save", tmp_path / "whole")
    dpo("--save", tmp_path / "half", "--exit-interval", 3)
    dpo("--finetune=false", "--load", tmp_path / "half", "--save", tmp_path / "half")
    with open_checkpoint(tmp_path / "whole") as whole, open_checkpoint(tmp_path / "half") as half:
        assert half.iteration == 6
        for name in whole.names():
            assert np.array_equal(whole.read_global(name).array, half.read_global(name).array), name


def test_mistakes(train, dpo, pairs, text_data, tmp_path):
    flags = ("--stage", "dpo", "--is-pairwise-dataset", "--ref-model", tmp_path / "start")
    with pytest.raises(UserError, match=r"--data-path .*text_document is not pairwise: .* AlpacaStylePairwiseHandler"):
        train(*flags)
    with pytest.raises(UserError, match=r"holds pairs of answers: train on them with --stage dpo"):
        train("--stage", "sft", "--is-instruction-dataset", "--data-path", pairs)
    with pytest.raises(UserError, match=r"--ref-model .*none holds no checkpoint"):
        dpo("--ref-model", tmp_path / "none")
    for shape, said in ((("--padded-vocab-size", 352), "--padded-vocab-size 320, the model that is trained has 352"),
                        (("--ffn-hidden-size", 64), "--ffn-hidden-size 48, the model that is trained has 64")):
        with pytest.raises(UserError, match=rf"--ref-model .*start has {said}"):
            train(*flags, *shape, "--data-path", pairs)
    with pytest.raises(UserError, match=r"of pair \d+ nothing of the (chosen|rejected) answer lies within --seq-length 4"):
        dpo("--seq-length", 4)
