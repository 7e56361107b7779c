"""Run by test_documented_blocks.py under msrun on four ranks: the documented training blocks, one after the other.

    msrun ... block_cases.py FOLDER TEXT PACKED TOKENIZER

A block's flags come as they are documented; what is appended makes the model, the batch and the parallel sizes small
and names the files. Rank 0 writes what `pretrain_gpt.py` prints to FOLDER/<block>.log.
"""

import contextlib
import os
import sys
from pathlib import Path

import pretrain_gpt
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


def main() -> None:
    """Train every block; an error ends the job."""
    folder = Path(sys.argv[1])
    words = {name: flags(name, folder, *sys.argv[2:]) for name in SMALLER}
    for name, arguments in words.items():
        log = folder / f"{name}.log" if os.environ["RANK_ID"] == "0" else Path(os.devnull)
        sys.argv[1:] = arguments
        with log.open("w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
            pretrain_gpt.main()


if __name__ == "__main__":
    main()
