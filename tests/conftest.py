"""What tests of several folders use: a small tokenizer of the ChatGLM layout, resident ranks; and `--full`."""

import pytest

from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
from tests.distributed.pool import RankPool

TEXT = "What is the capital of France? The capital is Paris. 你好，世界！ Weather in Paris: sunny and warm, 21 degrees.\n"


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the long tables too (tests marked `full`)")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def ranks():
    """`ranks(world)`: the resident ranks of a world size, for all tests of the session."""
    pools = {}
    yield lambda world: pools.setdefault(world, RankPool(world))
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("chatglm_tokenizer")
    write_chatglm_tokenizer(path, train_tiktoken_bpe([TEXT] * 4, 330))
    return str(path)


@pytest.fixture(scope="session")
def glm_tokenizer(tokenizer_dir):
    return load_tokenizer(tokenizer_dir)
