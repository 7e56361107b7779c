"""What tests of the model share: each backend of the kernels in turn."""

import pytest

from mindspeed_llm import kernels
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.runtime import device


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    """Name of the active backend."""
    device.setup()
    monkeypatch.setenv("MINDSPEED_LLM_KERNELS", request.param)
    try:
        kernels.setup()
    except UserError as error:
        pytest.skip(str(error))
    return request.param
