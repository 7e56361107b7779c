"""The scheduler of a job, for which msrun runs the script once more (MS_ROLE=MS_SCHED)."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def stay_behind() -> None:
    """In a scheduler: fork, return in the child, and here wait until it ends or a SIGTERM comes, which is a good end.

    MindSpore's scheduler looks every five seconds whether the ranks have signed off, deaf to signals meanwhile, and
    msrun takes any status of it but 0 for a failure. The launcher knows when they are gone, and this lets it say so. Called
    before the framework is imported, while the process has one thread. Linux only.
    """
    parent, child = os.getpid(), os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # which ended before that
            os._exit(1)
        return
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print(f"scheduler is process {parent}", flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(status if status >= 0 else 128 - status)
