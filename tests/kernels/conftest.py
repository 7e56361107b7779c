"""The CPU backend, loaded once; its tests are skipped where it cannot be built."""

import pytest

from mindspeed_llm.runtime import device


@pytest.fixture(scope="session")
def cpu():
    device.setup()
    from mindspeed_llm.kernels import cpu as backend
    reason = backend.load()
    if reason is not None:
        pytest.skip(f"cpu kernels: {reason}")
    return backend


@pytest.fixture
def settings(cpu):
    """The CPU backend whose thread count and instruction set a test may change."""
    threads, chosen = cpu.threads(), cpu.instruction_set()
    yield cpu
    cpu.threads(threads)
    cpu.instruction_set(chosen)
