"""A small tokenizer of the ChatGLM layout, made once."""

import pytest

from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer

TEXT = "What is the capital of France? The capital is Paris. 你好，世界！ Weather in Paris: sunny and warm, 21 degrees.\n"


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also the long tables")


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("chatglm_tokenizer")
    write_chatglm_tokenizer(path, train_tiktoken_bpe([TEXT] * 4, 330))
    return str(path)


@pytest.fixture(scope="session")
def glm_tokenizer(tokenizer_dir):
    return load_tokenizer(tokenizer_dir)
