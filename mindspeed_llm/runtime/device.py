"""Device target, launch mode, seeding and memory readings: where Ascend and CPU differ before the first operation."""

import ctypes
import gc
import os
import re
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import mint

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.runtime import autograd

TARGETS = ("Ascend", "CPU")
MS_DTYPES = {"fp32": ms.float32, "bf16": ms.bfloat16, "fp16": ms.float16}

_state = {"target": None, "resident_after_import": 0}


def setup(seed: int = 1234) -> str:
    """Choose the device from DEVICE_TARGET (default: Ascend if one is present or simulated, else CPU) and start recording.

    Returns the target's name. Safe to call again. Raises UserError for an unknown or absent target.
    """
    if _state["target"] is None:
        target = os.environ.get("DEVICE_TARGET") or ("Ascend" if _ascend_present() else "CPU")
        if target not in TARGETS:
            raise UserError(f"DEVICE_TARGET ({target}) must be one of {', '.join(TARGETS)}: unset it to choose automatically")
        if target == "Ascend" and not _ascend_present():
            raise UserError("DEVICE_TARGET=Ascend but MindSpore finds no NPU here: use DEVICE_TARGET=CPU, or check the "
                            "driver and CANN installation")
        ms.set_device(target)
        if target == "CPU" or simulated():
            # Asynchronous launch steals the cores from the kernels there (2-4x slower) and reports errors late.
            ms.runtime.launch_blocking()
        autograd.enable()
        gc.freeze()     # what imports have made stays: looking through it takes a full collection 80 ms
        _state["target"] = target
        _state["resident_after_import"] = _status_kb("VmRSS")
    ms.set_seed(seed)
    np.random.seed(seed % 2**32)
    return _state["target"]


def make_deterministic() -> None:
    """On Ascend choose operators and collectives whose bits do not vary; before groups are made. On CPU nothing varies.

    https://www.mindspore.cn/docs/en/r2.7.0/api_python/mindspore/mindspore.set_deterministic.html
    """
    if not on_cpu():
        ms.set_deterministic(True)


def simulated() -> bool:
    """Whether MindSpore is asked to simulate an NPU (MS_SIMULATION_LEVEL): it dispatches and allocates but computes
    nothing.
    """
    return bool(os.environ.get("MS_SIMULATION_LEVEL"))


def notes() -> list[str]:
    """Lines about the chosen device that a job prints once."""
    if simulated() and not on_cpu():
        return ["MS_SIMULATION_LEVEL is set: Ascend is simulated, nothing is computed, every value below is meaningless"]
    return []


def target() -> str:
    """The chosen device target. Raises RuntimeError before `setup`."""
    if _state["target"] is None:
        raise RuntimeError("runtime.device.setup() has not been called")
    return _state["target"]


def on_cpu() -> bool:
    """True when tensors live in host memory and can be shared with numpy."""
    return target() == "CPU"


def dtype(name: str) -> ms.Type:
    """MindSpore's type for `fp32`, `bf16` or `fp16`."""
    return MS_DTYPES[name]


def cast(tensor: ms.Tensor, wanted: ms.Type) -> ms.Tensor:
    """`tensor` in another dtype, itself if it has that one. For where nothing is recorded: no gradient flows back.

    On CPU MindSpore 2.10's Cast takes 0.7 ms however few the elements; its copy between types, with the same bits,
    0.07 ms.
    """
    if tensor.dtype == wanted:
        return tensor
    return mint.empty(tensor.shape, dtype=wanted).copy_(tensor) if on_cpu() else tensor.astype(wanted)


def peak_memory_mb() -> float:
    """Peak memory in MB: device memory on Ascend; on CPU the process's peak resident memory beyond what import took."""
    if target() == "Ascend":
        return ms.runtime.max_memory_allocated() / 2**20
    return max(0, _status_kb("VmHWM") - _state["resident_after_import"]) / 2**10


def run_operators_in_caller() -> None:
    """Give MindSpore's CPU operators no threads but the one that calls them. To be called before the first operator.

    Its pool has two threads at least, whatever `runtime_num_threads` says. After every operator that they shared in, one of
    them calls sched_yield 3,000 times, as does the caller until they are done: time taken from our kernels and from the
    other ranks of the machine. MindSpore 2.10 has no setting for that, but the first operator makes the pool only if
    nobody else has (`ActorMgr::Initialize`, core/mindrt/include/actor/actormgr.h, which the wheel ships), and
    one of a single thread makes operators run where they are called. That thread too would begin with 300,000 calls of
    sched_yield, but for `SetSpinCountMinValue` (core/mindrt/include/thread/threadpool.h). Where the libraries lack the
    names, the pool is MindSpore's: slower, nothing else.
    """
    libraries = Path(ms.__file__).parent / "lib"
    try:
        core = ctypes.CDLL(str(libraries / "libmindspore_core.so"))
        manager = ctypes.c_char.in_dll(core, "_ZN9mindspore8ActorMgr8actorMgrE")
        initialize = core._ZN9mindspore8ActorMgr10InitializeEbmmmRKSt6vectorIiSaIiEE
        sleep_early = core._ZN9mindspore10ThreadPool20SetSpinCountMinValueEv
        pool = ctypes.CDLL(str(libraries / "plugin" / "libmindspore_ops_cpu.so")
                           )._ZN9mindspore6kernel26GetActorMgrInnerThreadPoolEv
    except (OSError, AttributeError, ValueError):
        return
    pool.restype, sleep_early.restype, sleep_early.argtypes = ctypes.c_void_p, None, [ctypes.c_void_p]
    threads, queue = ctypes.c_size_t(1), ctypes.c_size_t(8192)
    no_cores = (ctypes.c_void_p * 3)()  # an empty std::vector<int>
    initialize(ctypes.byref(manager), ctypes.c_bool(True), threads, threads, queue, ctypes.byref(no_cores))
    sleep_early(pool())


def _ascend_present() -> bool:
    # The driver's device nodes: asking MindSpore would load the Ascend plugin and complain loudly where there is none.
    return simulated() or any(Path("/dev").glob("davinci[0-9]*"))


def _status_kb(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found.group(1)) if found else 0
