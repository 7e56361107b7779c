"""What tests of several folders use: a small tokenizer of the ChatGLM layout, resident ranks; and `--full`."""

import os

import pytest

from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
from tests.distributed.pool import RankPool

TEXT = "What is the capital of France? The capital is Paris. 你好，世界！ Weather in Paris: sunny and warm, 21 degrees.\n"


# What tests/run.sh starts first, so that its two processes end at about the same time: whole jobs take longest.
LONGEST = ("ranks", "tests/scripts/test_quickstart.py", "tests/test_instruction_sets.py",
           "tests/distributed/test_two_nodes.py", "tests/distributed/test_failures.py",
           "tests/scripts/test_long_scripts.py")


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the long tables too (tests marked `full`)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if item.get_closest_marker("full") and not config.getoption("--full")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    if "PYTEST_XDIST_WORKER" in os.environ:
        for item in items:
            item.add_marker(pytest.mark.xdist_group(_group(item)))
        items.sort(key=lambda item: LONGEST.index(_group(item)) if _group(item) in LONGEST else len(LONGEST))


def _group(item):
    """Tests of one name stay in one process: those on resident ranks, of which there is one set; else a file's."""
    return "ranks" if "ranks" in item.fixturenames else item.location[0]


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
