"""What tests of the model share: each backend of the kernels in turn."""

import pytest

from mindspeed_llm import kernels
from mindspeed_llm.runtime import device
from tests.golden.trial import LONG_STEPS, SHORT_STEPS


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    """Name of the active backend."""
    if request.param == "cpu":
        request.getfixturevalue("compiler")
    device.setup()
    monkeypatch.setenv("MINDSPEED_LLM_KERNELS", request.param)
    kernels.setup()
    return request.param


@pytest.fixture
def steps(backend):
    """AdamW steps for the active backend: `reference` is slow."""
    return SHORT_STEPS if backend == "reference" else LONG_STEPS
