"""Training of low-rank adapters in one process: what is saved, exact resume, generation's use, bad input in one line."""

import numpy as np
import pytest
from mindspore import Tensor

from mindspeed_llm.checkpoint import open_checkpoint
from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.lora import TARGETS
from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.core.transformer.lora import ADAPTERS_OFF, ADAPTERS_ON
from mindspeed_llm.runtime import autograd
from mindspeed_llm.tasks.inference.loading import load
from tests.training.test_training import losses

ADAPTERS = ("--lora-target-modules", *TARGETS, "--lora-r", 4, "--lora-alpha", 8, "--lora-fusion")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("base") / "ckpt"


@pytest.fixture
def adapt(train, base):
    """A run of adapters on the base, which the first one makes."""
    if not base.exists():
        train("--save", base, "--train-iters", 2)
    return lambda *flags: train("--load", base, *flags)


def tensors(directory):
    """Weights and optimizer state of a checkpoint."""
    with open_checkpoint(directory) as saved:
        found = {name: saved.read_global(name).array.copy() for name in saved.names()}
        for spec in model_specs(saved.model_config, (), saved.lora):
            if spec.trainable:
                states = saved.read_optimizer(spec, 0, 1, 0, int(np.prod(spec.shape)))
                found |= {f"{state}/{spec.name}": array for state, array in states.items()}
        assert saved.verify() > 0
        return found


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_adapters_are_saved_and_resumed_alone(adapt, base, tmp_path, capsys):
    dropout = ("--lora-dropout", 0.2, "--lora-ckpt-filter")
    adapt(*ADAPTERS, *dropout, "--save", tmp_path / "straight")
    output = capsys.readouterr().out
    assert "trainable params: 2,944 || all params: 39,072 || trainable%: 7.5348" in output
    assert f"successfully loaded checkpoint from {base} at iteration 0 (weights of iteration 2)" in output
    adapt(*ADAPTERS, *dropout, "--save", tmp_path / "resumed", "--exit-interval", 2)
    # Layers are computed again in this part: the same elements are dropped.
    adapt("--lora-ckpt-filter", "--lora-load", tmp_path / "resumed", "--save", tmp_path / "resumed",
          "--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", 1)
    resumed = capsys.readouterr().out
    assert f"successfully loaded checkpoint from {tmp_path / 'resumed'} at iteration 2\n" in resumed
    assert losses(output) == losses(resumed)
    straight = tensors(tmp_path / "straight")
    assert {name.split(".")[-2] for name in straight} == {"lora_A", "lora_B"}
    assert equal(straight, tensors(tmp_path / "resumed"))


def test_a_checkpoint_with_its_base_resumes_by_itself(adapt, train, base, tmp_path, capsys):
    adapt(*ADAPTERS, "--save", tmp_path / "whole", "--exit-interval", 3)
    train("--load", tmp_path / "whole", "--save", tmp_path / "whole", "--eval-iters", 0)
    adapt(*ADAPTERS, "--save", tmp_path / "straight")
    found = losses(capsys.readouterr().out)
    assert found[:6] == found[6:] and len(set(found)) == 6
    whole = tensors(tmp_path / "whole")
    assert equal(whole, tensors(tmp_path / "straight"))
    with open_checkpoint(base) as saved:
        assert all(np.array_equal(saved.read_global(name).array, whole[name]) for name in saved.names())


def test_generation_has_the_adapters(adapt, base, tmp_path, tokenizer_dir, capsys):
    adapt(*ADAPTERS, "--save", tmp_path / "adapters", "--lora-ckpt-filter")
    loaded = load(parse("inference", ["--load", str(base), "--lora-load", str(tmp_path / "adapters"), "--lora-r", "4",
                                      "--tokenizer-name-or-path", tokenizer_dir]))
    assert f"successfully loaded checkpoint from {tmp_path / 'adapters'} at iteration 6" in capsys.readouterr().out
    for name, tensor in tensors(tmp_path / "adapters").items():
        if "/" not in name:
            assert np.array_equal(loaded.model.parameters[name].asnumpy(), tensor), name
    prompt = [5, 6, 7, 8]
    _, shard = loaded.generator().prefill([prompt])
    ids = Tensor(np.array([prompt], np.int32).T)
    with autograd.no_grad():
        with_, without = (loaded.model.logits(loaded.model.hidden_states(ids, loaded.model.training_context(4, adapters=use)))
                          .asnumpy()[-1, 0, :loaded.tokenizer.vocab_size] for use in (ADAPTERS_ON, ADAPTERS_OFF))
    generated = shard.logits[0, :loaded.tokenizer.vocab_size]
    assert np.abs(generated - with_).max() < 1e-5 < np.abs(generated - without).max()


def test_bad_input(adapt, train, base, tmp_path):
    def refused(run, *flags):
        with pytest.raises((UserError, FileNotFoundError)) as error:
            run(*flags)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "--lora-r (0) must be a whole number at least 1" in refused(adapt, *ADAPTERS, "--lora-r", 0)
    assert "--lora-target-modules (q_proj) must be linear_qkv or" in refused(adapt, "--lora-target-modules", "q_proj")
    assert "--lora-alpha is given, but no adapters are" in refused(adapt, "--lora-alpha", 8)
    assert "holds a model without adapters: give it as --load" in refused(adapt, "--lora-load", base)
    assert "does not exist" in refused(adapt, "--lora-load", tmp_path / "none")
    adapt(*ADAPTERS, "--save", tmp_path / "adapters", "--lora-ckpt-filter", "--train-iters", 1)
    assert "--lora-r (8) contradicts the adapters of" in refused(adapt, "--lora-load", tmp_path / "adapters", "--lora-r", 8)
    assert "holds adapters only" in refused(train, "--load", tmp_path / "adapters")
    assert "needs --load" in refused(train, "--lora-load", tmp_path / "adapters")
    for name, other, said in (("shape", ("--ffn-hidden-size", 32), "--ffn-hidden-size is 48 there and 32 here"),
                              ("family", ("--post-norm",), "--post-norm is False there and True here")):
        train(*other, "--save", tmp_path / name, "--train-iters", 1)
        message = refused(train, *other, "--load", tmp_path / name, "--lora-load", tmp_path / "adapters")
        assert "are of another model" in message and said in message
