"""A tiny training job in this process: data, flags, and the run."""

import os

import numpy as np
import pytest

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.data.indexed_dataset import IndexedDatasetBuilder
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer

os.environ["DEVICE_TARGET"] = "CPU"

SHAPE = ("--num-layers 2 --hidden-size 32 --ffn-hidden-size 48 --num-attention-heads 4 --group-query-attention "
         "--num-query-groups 2 --kv-channels 8 --padded-vocab-size 320 --add-qkv-bias --disable-bias-linear --swiglu "
         "--normalization RMSNorm --position-embedding-type rope --untie-embeddings-and-output-weights "
         "--max-position-embeddings 32 --seq-length 32").split()
SCHEDULE = ("--micro-batch-size 2 --global-batch-size 4 --train-iters 6 --lr 1e-2 --lr-decay-style cosine --min-lr 1e-3 "
            "--lr-warmup-fraction 0.2 --weight-decay 0.1 --clip-grad 1.0 --eval-iters 0").split()


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_chatglm_tokenizer(path, train_tiktoken_bpe(["one two three four five six seven"] * 4, 260))
    return str(path)


def write_documents(prefix, documents, dtype=np.int32):
    """An indexed data set with one sequence per document."""
    with IndexedDatasetBuilder(prefix, dtype) as builder:
        for document in documents:
            builder.add_item(document)
            builder.end_document()
        builder.finalize()


@pytest.fixture(scope="session")
def text_data(tmp_path_factory):
    """Documents of counted ids: something to learn."""
    prefix = str(tmp_path_factory.mktemp("data") / "text_document")
    rng = np.random.default_rng(3)
    write_documents(prefix, [(np.arange(50) + rng.integers(0, 200)) % 256 for _ in range(40)])
    return prefix


@pytest.fixture
def train(text_data, tokenizer_dir):
    """Runs `pretrain_gpt.py`'s work here with further flags."""
    def run(*flags):
        from mindspeed_llm.training import run as train_run
        train_run(parse("pretrain", [*SHAPE, *SCHEDULE, "--data-path", text_data, "--tokenizer-name-or-path",
                                     tokenizer_dir, *map(str, flags)]))
    return run
