"""The parts of `runtime` that differ on Ascend: choosing the device, its memory, buffers."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from contract import Recorder, called_names, names
from emulator import array, tensor
from mindspore import Tensor, mint

from mindspeed_llm import kernels
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.kernels import ascend
from mindspeed_llm.runtime import device, memory


@pytest.fixture
def calls(monkeypatch):
    """Calls that `device` makes when an NPU is found."""
    device.setup()
    noted = []
    emulators = {"ms.set_device": lambda device_target, device_id=None: None,
                 "ms.set_deterministic": lambda deterministic: None,
                 "ms.runtime.max_memory_allocated": lambda: 3 * 2**20}
    monkeypatch.setattr(device, "ms", Recorder(ms, "ms", emulators, noted))
    monkeypatch.setattr(device, "_state", {"target": None, "resident_after_import": 0})
    monkeypatch.setattr(device, "_ascend_present", lambda: True)
    monkeypatch.delenv("DEVICE_TARGET", raising=False)
    return noted


def test_an_npu_is_chosen_and_read(calls):
    assert device.setup(seed=5) == "Ascend" and not device.on_cpu()
    assert device.peak_memory_mb() == 3.0
    device.make_deterministic()
    assert [arguments for name, arguments in calls if name == "ms.set_device"] == [{"device_target": "Ascend"}]
    assert "ms.runtime.launch_blocking" not in names(calls), "the host runs ahead of an NPU"
    written = called_names(Path(device.__file__), {"ms"}) - {"ms.runtime.launch_blocking"}
    assert written <= names(calls), written - names(calls)


def test_an_absent_npu_is_an_error(calls, monkeypatch):
    monkeypatch.setattr(device, "_ascend_present", lambda: False)
    monkeypatch.setenv("DEVICE_TARGET", "Ascend")
    with pytest.raises(UserError, match="no NPU"):
        device.setup()


def test_the_backend_follows_the_device(calls, monkeypatch):
    active = kernels.SimpleNamespace(name=None, api=None, primitives=None)
    monkeypatch.setattr(kernels, "_active", active)
    monkeypatch.delenv("MINDSPEED_LLM_KERNELS", raising=False)
    device.setup()
    assert kernels.setup("bf16")[0] == "kernels: ascend on Ascend"
    assert active.primitives.attention_fwd is ascend.attention.attention_fwd
    assert active.api.attention is ascend.attention.attention
    monkeypatch.setenv("MINDSPEED_LLM_KERNELS", "cpu")
    with pytest.raises(UserError, match="cannot run on Ascend"):
        kernels.setup("bf16")


class _DeviceMemory:
    """A tensor on an NPU, whose slices and views are the same memory: MindSpore's CPU tensors do not write through."""

    def __init__(self, values, dtype):
        self.values, self.dtype, self.shape = values, dtype, values.shape

    def __getitem__(self, index):
        assert index.step is None, "only a plain slice is a view"
        return _DeviceMemory(self.values[index], self.dtype)

    def view(self, shape):
        return _DeviceMemory(self.values.reshape(shape), self.dtype)

    def copy_(self, source):
        assert source.dtype == self.dtype and source.shape == self.shape
        self.values[...] = array(source)


def _numbers(tensor_or_memory):
    return getattr(tensor_or_memory, "values", None) if isinstance(tensor_or_memory, _DeviceMemory) \
        else array(tensor_or_memory)


def _script(buffer, base):
    """A use of every method, and what views and slices hold after it."""
    for number, view in enumerate(buffer.views):
        view.copy_(tensor(np.full(view.shape, base + number), view.dtype))
    buffer.slice(2, 5).copy_(tensor(np.array([20, 30, 40]), buffer.dtype))
    buffer.store(7, tensor(np.array([50, 60]), buffer.dtype))
    return [_numbers(part) for part in (*buffer.views, buffer.slice(0, 7), buffer.slice(7, 10), buffer.slice(1, 3))]


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16])
def test_buffers_hold_everything_once_on_both_devices(monkeypatch, dtype):
    device.setup()
    groups, noted = [[(2, 2), (3,)], [(1,), (2,)]], []  # the last one is padding, as ParameterSet makes it
    zeros = {"mint.zeros": lambda shape, dtype: _DeviceMemory(np.zeros(shape), dtype)}
    monkeypatch.setattr(memory, "mint", Recorder(mint, "mint", zeros, noted))
    on_cpu = _script(memory.FlatBuffer(groups, dtype), 3)
    with monkeypatch.context() as patch:
        patch.setattr(device, "on_cpu", lambda: False)
        buffer = memory.FlatBuffer(groups, dtype)
        assert buffer.numel == 10 and buffer.offsets == [0, 4, 7, 8, 10]
        on_npu = _script(buffer, 3)
        assert np.array_equal(memory.from_numpy(np.arange(3, dtype=np.int32)).asnumpy(), [0, 1, 2])
    assert [part.tolist() for part in on_npu] == [part.tolist() for part in on_cpu] == [
        [[3, 3], [20, 30]], [40, 4, 4], [50], [60, 6], [3, 3, 20, 30, 40, 4, 4], [50, 60, 6], [3, 20]]
    written = called_names(Path(memory.__file__), {"mint"})
    assert written and written <= names(noted), written - names(noted)


def test_a_range_over_two_groups_is_refused():
    device.setup()
    buffer = memory.FlatBuffer([[(4,)], [(4,)]], ms.float32)
    with pytest.raises(ValueError, match="elements 3 to 5 are not in one group: it ends at 4"):
        buffer.slice(3, 5)


def test_bf16_arrays_become_tensors(monkeypatch):
    device.setup()
    values = np.arange(4).astype(memory.numpy_dtype(ms.bfloat16))
    monkeypatch.setattr(device, "on_cpu", lambda: False)
    result = memory.from_numpy(values)
    assert isinstance(result, Tensor) and result.dtype == ms.bfloat16 and array(result).tolist() == [0, 1, 2, 3]
