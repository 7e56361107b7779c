"""The documented GLM4 flag blocks of MindSpeed-LLM train as pasted, on four ranks, with the model made tiny."""

import math
import re

import pytest

from mindspeed_llm.checkpoint import open_checkpoint
from tests.scripts.block_cases import SMALLER
from tests.scripts.tiny_data import write_packed, write_text

RANKS = {"pretrain 4k": "tensor 1 x context 1 x data 2 x pipeline 2",
         "pretrain 8k": "tensor 2 x context 1 x data 1 x pipeline 2, sequence parallel",
         "pretrain 32k": "tensor 2 x context 2 x data 1 x pipeline 1, sequence parallel",
         "pretrain 32b": "tensor 2 x context 1 x data 1 x pipeline 2, sequence parallel",
         "tune 32k": "tensor 2 x context 1 x data 1 x pipeline 2, sequence parallel"}


@pytest.fixture(scope="module")
def folder(ranks, tmp_path_factory, tokenizer_dir):
    path = tmp_path_factory.mktemp("blocks")
    files = write_text(path, 4000), write_packed(path, 8, 64), tokenizer_dir
    for name in SMALLER:
        ranks(4).run("tests.scripts.block_cases:train", name, str(path), *files)
    return path


def losses(folder, name):
    log = (folder / f"{name}.log").read_text()
    return [float(loss) for loss in re.findall(r"iteration +\d+/ +2 \|.* lm loss: (\S+) \|", log)]


@pytest.mark.parametrize("name", SMALLER)
def test_block_trains(folder, name):
    log = (folder / f"{name}.log").read_text()
    assert f"ranks: 4 = {RANKS[name]}" in log
    assert log.count("accepted without effect: ") == 1
    found = losses(folder, name)
    assert len(found) == 2 and found == pytest.approx([math.log(512)] * 2, rel=0.02)
    with open_checkpoint(folder / name) as saved:
        assert saved.iteration == 2 and saved.has_optimizer and saved.model_config.hidden_size == 64
        assert saved.model_config.rotary_base == (5e6 if "32k" in name else 1e4)


def test_layouts_of_one_model_agree(folder):
    """The 4K and 8K blocks differ in nothing but their parallel sizes here."""
    assert losses(folder, "pretrain 4k") == pytest.approx(losses(folder, "pretrain 8k"), rel=2e-4)  # bf16


def test_tuning_starts_from_the_pretrained_weights(folder):
    log = (folder / "tune 32k.log").read_text()
    loaded = folder / "pretrain 8k"
    assert f"successfully loaded checkpoint from {loaded} at iteration 0 (weights of iteration 2)\n" in log


def test_noop_layers_are_left_out(folder):
    with open_checkpoint(folder / "pretrain 32b") as saved:
        layers = {int(number) for name in saved.names() for number in re.findall(r"layers\.(\d+)\.", name)}
    assert layers == set(range(16)) - {6, 7, 15}
