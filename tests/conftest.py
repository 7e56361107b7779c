"""What tests of several folders use: a small tokenizer of the ChatGLM layout, resident ranks; and `--full`."""

import fcntl
import gc
import os

import pytest

from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
from mindspeed_llm.runtime import cpp_build
from tests.distributed.pool import RankPool

TEXT = "What is the capital of France? The capital is Paris. 你好，世界！ Weather in Paris: sunny and warm, 21 degrees.\n"
# Files whose tests use the fixture `ranks`: tests/run.sh gives them to one of its processes.
ON_RANKS = ("tests/distributed/test_adapters.py", "tests/distributed/test_behaviour.py",
            "tests/distributed/test_half_precision.py",
            "tests/distributed/test_layer_parity.py", "tests/distributed/test_parallel_inference.py",
            "tests/distributed/test_parity.py", "tests/distributed/test_pool.py",
            "tests/distributed/test_preference_parity.py", "tests/distributed/test_validation_samples.py",
            "tests/runtime/test_shared_memory.py", "tests/scripts/test_documented_blocks.py")
# What tests/run.sh starts first: whole jobs take longest, and what waits should do so beside what computes.
LONGEST = ("ranks", "tests/scripts/test_quickstart.py", "tests/test_instruction_sets.py",
           "tests/distributed/test_two_nodes.py", "tests/distributed/test_failures.py",
           "tests/scripts/test_long_scripts.py", "tests/launch/test_ranks.py", "tests/training/test_training.py",
           "tests/test_docs.py")
WORLDS = (1, 2, 4, 8)     # sizes of resident ranks


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the long tables too (tests marked `full`)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if item.get_closest_marker("full") and not config.getoption("--full")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = {group: number for number, group in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(_group(item.location[0]), len(place)))


def pytest_collection_finish():
    gc.freeze()     # what has been imported, MindSpore above all, is no garbage: looking through it takes 0.1 s


def _group(file):
    """Files of one group run in one process: those on resident ranks, of which there is one set; else each by itself."""
    return "ranks" if file in ON_RANKS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile` by group. (`--dist loadgroup` of pytest-xdist 3.8 groups nothing under pytest 9.2: its issue
    1386.)
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group(nodeid.partition("::")[0])
    return ByGroup(config, log)


@pytest.fixture(scope="session")
def compiler():
    """Skips where there is no C++ compiler. Where there is one, code that does not build is a failure."""
    try:
        return cpp_build.compiler()
    except cpp_build.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """`ranks(world)`: the resident ranks of a world size, for all tests of the session."""
    base = tmp_path_factory.getbasetemp()
    with (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base).joinpath("ranks.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a second set of ranks would take the memory and the time once more
            pytest.fail("two test processes use `ranks`: is the file of this test in ON_RANKS of tests/conftest.py?")
        pools = {world: RankPool(world) for world in WORLDS}
        for pool in pools.values():     # at once, for ranks sleep most of the five seconds in which they join
            pool.start()
        yield pools.__getitem__
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
