"""Running a program that a model wrote: a process of its own with limits, in an empty directory, where possible without
a network. This is no sandbox that withstands an attack (the program may read what its user may read): use a container
or a machine of its own for models that are not trusted.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 10  # of wall-clock and of processor time

# Runs in the new process before the program: limits that it cannot raise again. PROCESSES counts all of the user's, and
# does not hold for root.
_LIMITED = """
import resource, runpy, sys
for limit, value in ((resource.RLIMIT_CPU, {seconds}), (resource.RLIMIT_AS, {memory}),
                     (resource.RLIMIT_FSIZE, {file_size}), (resource.RLIMIT_NPROC, {processes}),
                     (resource.RLIMIT_NOFILE, {files}), (resource.RLIMIT_CORE, 0)):
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
runpy.run_path(sys.argv[1], run_name="__main__")
"""
_LIMITS = {"memory": 2 << 30, "file_size": 16 << 20, "processes": 64, "files": 64}  # bytes of all, of each file

_UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]


def passes(program: str, seconds: int = SECONDS) -> bool:
    """Whether the Python program ends by itself within `seconds` with exit status 0. Nothing that it prints is kept."""
    with tempfile.TemporaryDirectory(prefix="humaneval-") as folder:
        file = Path(folder) / "program.py"
        file.write_text(program, encoding="utf-8", errors="replace")
        limited = _LIMITED.format(seconds=seconds, **_LIMITS)
        command = [*isolation(), sys.executable, "-I", "-B", "-c", limited, str(file)]
        with subprocess.Popen(command, cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder},
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              start_new_session=True) as process:
            try:
                return process.wait(seconds) == 0
            except subprocess.TimeoutExpired:
                return False
            finally:  # whatever it started and left behind ends too
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@functools.cache
def isolation() -> list[str]:
    """The command that gives a program no network and processes of its own; empty where the system does not allow
    it.
    """
    try:
        allowed = subprocess.run([*_UNSHARE, "true"], capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        allowed = False
    return _UNSHARE if allowed else []
