"""The CPU backend, loaded once; its tests are skipped where there is no compiler, and fail where it does not build."""

import pytest

from mindspeed_llm.runtime import device


@pytest.fixture(scope="session")
def cpu(compiler):
    device.setup()
    from mindspeed_llm.kernels import cpu as backend
    reason = backend.load()
    assert reason is None, reason
    return backend


@pytest.fixture
def settings(cpu):
    """The CPU backend whose thread count and instruction set a test may change."""
    threads, chosen = cpu.threads(), cpu.instruction_set()
    yield cpu
    cpu.threads(threads)
    cpu.instruction_set(chosen)
