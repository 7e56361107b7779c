"""A tiny training job in this process: data, flags, and the run."""

import os

import numpy as np
import pytest

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
from tests.training.tiny_job import SCHEDULE, SHAPE, write_documents

os.environ["DEVICE_TARGET"] = "CPU"

@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_chatglm_tokenizer(path, train_tiktoken_bpe(["one two three four five six seven"] * 4, 260))
    return str(path)


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
