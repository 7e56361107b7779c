"""The parts of `runtime` that differ on Ascend: choosing the device, its memory, buffers that share none."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from contract import Recorder, called_names, names
from emulator import array, tensor
from mindspore import Tensor, mint, ops

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
                 "ms.runtime.max_memory_allocated": lambda: 3 * 2**20}
    monkeypatch.setattr(device, "ms", Recorder(ms, "ms", emulators, noted))
    monkeypatch.setattr(device, "_state", {"target": None, "resident_after_import": 0})
    monkeypatch.setattr(device, "_ascend_present", lambda: True)
    monkeypatch.delenv("DEVICE_TARGET", raising=False)
    return noted


def test_an_npu_is_chosen_and_read(calls):
    assert device.setup(seed=5) == "Ascend" and not device.on_cpu()
    assert device.peak_memory_mb() == 3.0
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


class _Slices:
    """A flat tensor on an NPU, of which slices are read and written: MindSpore's CPU operators cannot."""

    def __init__(self, values, dtype):
        self.values, self.dtype = np.array(values, np.float64), dtype

    def __getitem__(self, index):
        return tensor(self.values[index], self.dtype)

    def __setitem__(self, index, given):
        assert given.dtype == self.dtype and given.shape == self.values[index].shape
        self.values[index] = array(given)


def _cat(tensors, axis=0):
    return _Slices(np.concatenate([array(part) for part in tensors], axis), tensors[0].dtype)


def _script(buffer, base):
    """A use of every method, and what the buffer holds after each step that makes a difference."""
    seen = []
    for number, view in enumerate(buffer.views):
        view.copy_(tensor(np.full(view.shape, base + number), view.dtype))
    seen.append(array(buffer.pull()[:]))
    part = buffer.slice(2, 5)
    part.copy_(part * 2)
    buffer.write_back(2, part)
    buffer.store(6, tensor(np.array([50, 60]), buffer.dtype))
    buffer.push()
    seen += [array(view) for view in buffer.views]
    return seen


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16])
def test_separate_buffers_behave_as_shared_ones(monkeypatch, dtype):
    device.setup()
    shapes, noted = [(2, 2), (3,), (1,), (2,)], []  # the last one is padding, as ParameterSet makes it
    for name, real in (("mint", mint), ("ops", ops)):
        monkeypatch.setattr(memory, name, Recorder(real, name, {"ops.cat": _cat}, noted))
    shared = _script(memory.FlatBuffer(shapes, dtype), 3)
    with monkeypatch.context() as patch:
        patch.setattr(device, "on_cpu", lambda: False)
        separate = memory.FlatBuffer(shapes, dtype)
        assert not separate.shared and separate.numel == 10
        results = _script(separate, 3)
        assert np.array_equal(memory.from_numpy(np.arange(3, dtype=np.int32)).asnumpy(), [0, 1, 2])
    for ours, theirs in zip(results, shared, strict=True):
        assert np.array_equal(ours, theirs)
    written = called_names(Path(memory.__file__), {"mint", "ops"})
    assert written and written <= names(noted), written - names(noted)


def test_bf16_arrays_become_tensors(monkeypatch):
    device.setup()
    values = np.arange(4).astype(memory.numpy_dtype(ms.bfloat16))
    monkeypatch.setattr(device, "on_cpu", lambda: False)
    result = memory.from_numpy(values)
    assert isinstance(result, Tensor) and result.dtype == ms.bfloat16 and array(result).tolist() == [0, 1, 2, 3]
