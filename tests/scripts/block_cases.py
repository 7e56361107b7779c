"""Cases of a RankPool for test_documented_blocks.py: the documented training blocks on four ranks.

A block's flags come as they are documented; what is appended makes the model, the batch and the parallel sizes small
and names the files.
"""

import contextlib
import os
import sys
from pathlib import Path
from unittest.mock import patch

import pretrain_gpt
from mindspeed_llm.runtime import collectives
from tests.config.flag_blocks import BLOCKS, argv

SHAPE = ("--num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 8 --padded-vocab-size 512 "
         "--seq-length 64 --max-position-embeddings 64 --global-batch-size 8 --train-iters 2")
# Four ranks, where a block asks for more; layers are counted for the small model.
SMALLER = {
    "pretrain 4k": "--tensor-model-parallel-size 1",
    "pretrain 8k": "",
    "pretrain 32k": "--pipeline-model-parallel-size 1 --context-parallel-size 2",
    "pretrain 32b": "--pipeline-model-parallel-size 2 --num-layers 16",
    "tune 32k": "--num-layer-list 3,1",
}


def flags(name: str, folder: Path, text: str, packed: str, tokenizer: str) -> list[str]:
    """The block's words and those that make it small. Tuning starts from what the 8K block has saved."""
    load, data = (folder / "pretrain 8k", packed) if name == "tune 32k" else (folder / "nothing", text)
    places = ["--data-path", data, "--tokenizer-name-or-path", tokenizer, "--load", str(load), "--save",
              str(folder / name)]
    return argv(BLOCKS[name][1]) + argv(SHAPE) + argv(SMALLER[name]) + places


def train(name: str, folder: str, text: str, packed: str, tokenizer: str) -> None:
    """Train a block; rank 0 writes what `pretrain_gpt.py` prints to `folder`/<block>.log."""
    log = Path(folder, f"{name}.log") if collectives.world().rank == 0 else Path(os.devnull)
    words = ["pretrain_gpt.py", *flags(name, Path(folder), text, packed, tokenizer)]
    with patch.object(sys, "argv", words), log.open("w", encoding="utf-8") as stream, \
            contextlib.redirect_stdout(stream):
        pretrain_gpt.main()
