"""Cases of test_pool.py."""

import os
import time
from pathlib import Path

import numpy as np
from mindspore import Tensor

from mindspeed_llm.runtime import collectives


def process() -> int:
    return os.getpid()


def threads_of_operators() -> list[str]:
    """Names of MindSpore's threads, after an operator that is large enough to be shared among them."""
    (Tensor(np.ones((512, 512), np.float32)) + 1).exp().asnumpy()
    names = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
    return sorted(name for name in names if name.startswith(("Actor", "Kernel")))


def fail(number: int) -> None:
    raise ValueError(f"{'seven' if number == 7 else number} is too many")


def die() -> None:
    os._exit(3)


def sleep() -> None:
    time.sleep(600)


def fail_before_a_sum(rank: int) -> None:
    if collectives.world().rank == rank:
        raise RuntimeError("planted")
    sum_of_ranks()


def sum_of_ranks() -> int:
    world = collectives.world()
    return int(collectives.all_reduce(Tensor(np.array([world.rank], np.float32)), world).asnumpy()[0])
