"""Latency and bandwidth of the collectives on CPU: shared memory against MCCL, in one run.

    msrun --worker_num 4 --local_worker_num 4 --join True --log_dir msrun_log benchmarks/collectives.py
    ... benchmarks/collectives.py --seconds 1 --sizes 2048 1048576

Rank 0 prints a table: per operation and size (bytes of the input of one rank) the median time of a call, on both
engines, and their ratio. `exchange` sends to the next rank and receives from the one before.
"""

import argparse
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindspeed_llm.runtime import collectives, device  # noqa: E402
from mindspeed_llm.runtime.collectives import mccl, shared_memory  # noqa: E402


def operations(engine, tensor: Tensor, group: collectives.Group) -> dict:
    """Name -> call, each with `tensor` as the input of one rank."""
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    parts = list(tensor.chunk(group.size, 0))

    def exchange():
        received = [(tensor.shape, tensor.dtype, before)]
        engine.finish_exchange(engine.start_exchange([(tensor, after)], received, group))

    return {"all_reduce": lambda: engine.all_reduce(tensor, group, "sum"),
            "all_gather": lambda: engine.all_gather(tensor, group),
            "reduce_scatter": lambda: engine.reduce_scatter(tensor, group),
            "all_to_all": lambda: engine.all_to_all(parts, group),
            "broadcast": lambda: engine.broadcast(tensor, group, 0),
            "exchange": exchange}


def measure(call, seconds: float, agree) -> float:
    """Median seconds of a call. `agree` makes all ranks do as many calls as rank 0 finds right."""
    call()
    started = time.perf_counter()
    call()
    count = int(agree(max(3, min(200, seconds / (time.perf_counter() - started)))))
    times = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 1 << 20, 16 << 20], help="bytes")
    parser.add_argument("--seconds", type=float, default=0.5, help="per operation, size and engine")
    options = parser.parse_args()
    device.setup()
    rank, size = mccl.init()
    world = collectives.Group(mccl.WORLD, tuple(range(size)), rank)
    reason = shared_memory.init(rank, size, lambda tensor: mccl.all_gather(tensor, world))
    if reason:
        raise SystemExit(f"no shared memory: {reason}")

    def agree(value: float) -> float:
        return float(shared_memory.broadcast(Tensor(np.array([value], np.float32)), world, 0).asnumpy()[0])

    for nbytes in options.sizes:
        tensor = Tensor(np.ones((nbytes // 256, 64), np.float32), ms.float32)
        ours, theirs = operations(shared_memory, tensor, world), operations(mccl, tensor, world)
        for name in ours:
            slow = measure(theirs[name], options.seconds, agree)
            fast = measure(ours[name], options.seconds, agree)
            if rank == 0:
                print(f"{size} ranks {name:15} {nbytes / 1024:9.0f} KB   mccl {slow * 1e3:9.3f} ms   "
                      f"shared memory {fast * 1e3:8.3f} ms {nbytes / fast / 1e9:6.2f} GB/s   x {slow / fast:6.1f}",
                      flush=True)
    shared_memory.barrier(world)


if __name__ == "__main__":
    main()
