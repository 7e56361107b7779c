"""Cases of test_pool.py."""

import os
import time
from pathlib import Path

import numpy as np
from mindspore import Tensor

from mindspeed_llm.runtime import collectives


def process() -> int:
    return os.getpid()


def threads_of_operators() -> dict[str, int]:
    """MindSpore's threads and the hundredths of a second that they have run, after an operator that is large enough to be
    shared among them and time enough to show who spins.
    """
    (Tensor(np.ones((512, 512), np.float32)) + 1).exp().asnumpy()
    time.sleep(0.3)
    found = {}
    for thread in os.listdir("/proc/self/task"):
        name, rest = Path(f"/proc/self/task/{thread}/stat").read_text().partition("(")[2].rsplit(") ", 1)
        user, system = rest.split()[11:13]
        if name.startswith(("Actor", "Kernel")):
            found[name] = int(user) + int(system)
    return found


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
