"""Running a program that a model wrote: see `sandbox` for what it is kept from.

Where the system gives a program no namespaces of its own, it may read and write what its user may, and end his
processes: then use a machine that may be lost.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.evaluation import sandbox

SECONDS = 10  # of wall-clock and of processor time


def passes(program: str, seconds: int = SECONDS) -> bool:
    """Whether the Python program comes to its end within `seconds` by itself. Nothing that it prints is kept.

    A program that leaves early, with whatever status, does not.
    """
    return _passes(program, seconds, ["namespaces"] if isolated() else [])


@functools.cache
def isolated() -> bool:
    """Whether the system gives a program namespaces of its own."""
    return _passes("", SECONDS, ["namespaces"])


def check() -> None:
    """Raise UserError where programs cannot be run with limits."""
    if not isolated() and not _passes("import decimal", SECONDS, []):
        raise UserError("--allow-code-execution: programs cannot be run with limits here (Linux is needed, and root "
                        "must be able to start a process as nobody): evaluate as another user, or elsewhere")


def _passes(program: str, seconds: int, more: list[str]) -> bool:
    with tempfile.TemporaryDirectory(prefix="humaneval-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-I", "-B", sandbox.__file__, str(seconds), folder, *more]
        variables = {"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, start_new_session=True) as process:
            try:
                process.communicate(program.encode(errors="replace"), seconds + 5)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            return process.wait() == sandbox.PASSED
