"""A child process, attended until it and all that it started are gone; signals are passed on to where they belong."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.config.errors import UserError

# What a signal to the launcher becomes for the processes of the job.
PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}
_LOOK_EVERY = 0.05      # seconds
_SECOND_INTERRUPT = 1.0     # seconds after the first from which on another one is the user's, and not the same again
_SI_KERNEL = 0x80       # siginfo of a signal that the terminal sent, to all processes of its foreground group
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Supervised:
    """How a child ended: its status as a shell shows it; the first signal, if any, that was passed on to the job.

    The status of a child that a signal ended is that of the one passed on: MindSpore makes a SIGTERM of a SIGINT.
    """

    status: int
    passed_on: signal.Signals | None = None


def attend(command: Sequence[str], output: Path, environment: Mapping[str, str],
           pass_on: Callable[[int, int, bool], None], look: Callable[[int], None], *,
           new_session: bool = False) -> Supervised:
    """Run `command`, its output in the file `output`; returns when no process of it is left.

    `look(pid)` is called many times a second and once more at the end. A signal becomes `pass_on(pid, number,
    from_terminal)`; a second SIGINT kills the job. Signals that this process was told to ignore (nohup) stay ignored.
    Linux only. Raises UserError when the command is not found.
    """
    heard = {number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
    waited_for = heard | {signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    not_ours = frozenset(children_of(os.getpid()))  # of the script that has become this process
    _adopt_orphans()
    process = _start(command, output, environment, mask, new_session)
    passed_on, interrupted_at = None, None
    try:
        while process.poll() is None:
            signalled = signal.sigtimedwait(waited_for, _LOOK_EVERY)
            look(process.pid)
            if signalled is None or signalled.si_signo == signal.SIGCHLD:
                continue
            number = PASSED_ON[signal.Signals(signalled.si_signo)]
            passed_on = passed_on or number
            if number == signal.SIGINT:
                now = time.monotonic()
                interrupted_at = interrupted_at or now
                if now - interrupted_at > _SECOND_INTERRUPT:
                    process.kill()
                    continue
            pass_on(process.pid, number, signalled.si_code == _SI_KERNEL)
    finally:    # an error of ours ends the job too; what else the child has started, in every case
        _end_orphans(not_ours)
    look(process.pid)
    ended_by = (passed_on or -process.returncode) if process.returncode < 0 else None
    return Supervised(process.returncode if ended_by is None else 128 + ended_by, passed_on)


def children_of(pid: int) -> list[int]:
    """The processes that `pid` has started, none if it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send the signal, if the process still is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _start(command: Sequence[str], output: Path, environment: Mapping[str, str], mask: set,
           new_session: bool) -> subprocess.Popen:
    """Our signals are blocked, to be waited for; the child's must not be: its mask is the one that we were given."""
    with output.open("wb") as stream:
        try:
            return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment,
                                    start_new_session=new_session,
                                    preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask))
        except FileNotFoundError:
            raise UserError(f"{command[0]} was not found on PATH: activate the environment that has MindSpore, or make "
                            "it with examples/mindspore/glm4/setup_env.sh") from None


def _adopt_orphans() -> None:
    """Processes of the job whose parent ends become our children, so that none can be left running."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_orphans(spared: frozenset[int]) -> None:
    """Kill what a job has left: the workers of an msrun or of a process that was killed. Their own children follow."""
    while left := set(children_of(os.getpid())) - spared:
        for pid in left:
            kill(pid)
            os.waitpid(pid, 0)
