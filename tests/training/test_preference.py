"""Preference tuning in one process: PyTorch's numbers, a whole run, what it reports, and mistakes."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mindspeed_llm import kernels
from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.runtime import device
from mindspeed_llm.training import reference, reference_logps
from mindspeed_llm.training.objectives.preference_loss import METRICS
from tests.golden.preference_trial import CASES, PreferenceTrial
from tests.training.tiny_job import write_pairs

FIELD = r" \| ".join([r"peak memory \(MB\): \S+", *(rf"{name}: (\S+)" for name in METRICS)]) + r" \|$"


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


@pytest.fixture
def copied(pairs, tmp_path):
    """The pairs in a folder of their own."""
    for path in Path(pairs).parent.iterdir():
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / "pairs"


def test_precomputed_reference_gives_the_same_training(dpo, copied, tmp_path, capsys, monkeypatch):
    dpo("--data-path", copied)
    plain = capsys.readouterr().out
    loaded = []
    load = reference_logps.load_reference
    monkeypatch.setattr(reference_logps, "load_reference", lambda *configs: loaded.append(1) or load(*configs))
    flags = ("--data-path", copied, "--precompute-ref")
    dpo(*flags)
    first = capsys.readouterr().out
    (kept,) = tmp_path.glob("pairs_reference_*.safetensors")
    assert f"0 pairs from {kept}, 12 computed" in first and loaded == [1]
    # Not the first step, whose rewards are 0 but for rounding: which is larger is chance.
    np.testing.assert_allclose(reported(first)[1:], reported(plain)[1:], rtol=1e-4, atol=1e-4)
    dpo(*flags)
    second = capsys.readouterr().out
    assert f"12 pairs from {kept}, 0 computed" in second and loaded == [1]
    assert np.array_equal(reported(second), reported(first))
    whole = reference_logps._read(kept, np.zeros((12, 2), np.float32))
    half = whole.copy()
    half[8:] = np.nan   # as after a kill
    reference_logps._write(kept, half)
    dpo(*flags)
    assert f"8 pairs from {kept}, 4 computed" in capsys.readouterr().out
    assert np.array_equal(reference_logps._read(kept, whole), whole)


def test_precomputed_reference_belongs_to_data_model_and_tokenizer(dpo, copied, tmp_path, tokenizer_dir):
    flags = ("--data-path", copied, "--precompute-ref", "--train-iters", 1)

    def files():
        return len(list(tmp_path.glob("pairs_reference_*.safetensors")))
    dpo(*flags)
    dpo(*flags, "--save", tmp_path / "other", "--seed", 7, "--micro-batch-size", 1)
    assert files() == 1
    dpo(*flags, "--ref-model", tmp_path / "other")
    assert files() == 2
    shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"pad_token": "<|user|>"}')
    dpo(*flags, "--tokenizer-name-or-path", tmp_path / "tokenizer")
    assert files() == 3
    dpo(*flags, "--seq-length", 16)
    assert files() == 4
    for path in Path(write_pairs(tmp_path / "more" / "pairs", 13)).parent.iterdir():
        shutil.copy(path, tmp_path / path.name)
    dpo(*flags)
    assert files() == 5


LORA = ("--lora-target-modules", "linear_qkv", "linear_fc2", "--lora-r", 4)


def test_adapters_compare_with_their_base(train, dpo, copied, tmp_path, capsys, monkeypatch):
    """Without a second model, also where training goes on; and as if the base had been named as the reference."""
    loads = []
    load = reference.load_weights
    monkeypatch.setattr(reference, "load_weights", lambda *given: loads.append(1) or load(*given))
    flags = ("--data-path", copied, *LORA, "--ref-model", "", "--lora-ckpt-filter")
    dpo(*flags, "--save", tmp_path / "adapters")
    alone = reported(capsys.readouterr().out)
    assert not loads and abs(alone[0, :4]).max() < 1e-4 and alone[-1, 3] > 0.01
    dpo(*flags, "--finetune=false", "--lora-load", tmp_path / "adapters", "--train-iters", 7)
    (further,) = reported(capsys.readouterr().out)
    assert not loads and further[3] > 0.01
    dpo(*flags, "--ref-model", tmp_path / "start")
    assert loads and np.array_equal(reported(capsys.readouterr().out), alone)
    dpo(*flags, "--precompute-ref")
    np.testing.assert_allclose(reported(capsys.readouterr().out)[1:], alone[1:], rtol=1e-4, atol=1e-4)
    dpo(*flags, "--finetune=false", "--lora-load", tmp_path / "adapters", "--train-iters", 7, "--precompute-ref")
    assert "12 pairs from" in capsys.readouterr().out
    dpo(*flags, "--lora-ckpt-filter=false", "--save", tmp_path / "both", "--train-iters", 1)
    with pytest.raises(UserError, match="--ref-model .*both holds adapters: a reference model has none"):
        dpo("--ref-model", tmp_path / "both")


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
    with pytest.raises(UserError, match=r"of pair \d+ nothing of the \w+ answer lies within --seq-length 4"):
        dpo("--seq-length", 4)
