"""The launcher started on small scripts, with a stand-in for msrun first on PATH."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.launch import ROOT, end, processes_of

# What every script of these tests may use.
HEAD = """import os, signal, sys, time
from pathlib import Path
rank = os.environ.get("RANK_ID")
def say(*words): print(*words, flush=True)
def note(name, text=""): Path(name).write_text(str(text))
"""
SECONDS = 60


class Launcher:
    """Starts `python -m mindspeed_llm.launch` in `folder`; every process of it carries the mark."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, f"launch-{folder}"
        (folder / "bin").mkdir()
        msrun = folder / "bin" / "msrun"
        msrun.write_text(f"#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name('fake_msrun.py')} \"$@\"\n")
        msrun.chmod(0o755)

    def command(self, body: str, *options: object, flags: tuple[str, ...] = ()) -> list[str]:
        """The command line of a job whose script has this body."""
        script = self.folder / "script.py"
        script.write_text(HEAD + body)
        return [sys.executable, "-m", "mindspeed_llm.launch", "--name", "job", *map(str, options), str(script), *flags]

    def environment(self, **variables: object) -> dict[str, str]:
        """This interpreter first on PATH, after the stand-in; OpenMP as the user left it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MS_", "GLOG_"))}
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "DEVICE_TARGET": "CPU", "JOB_MARK": self.mark,
                **{name: str(value) for name, value in variables.items()}}

    def start(self, body: str, *options: object, flags: tuple[str, ...] = (), stdin: int = subprocess.DEVNULL,
              **variables: object) -> subprocess.Popen:
        """The running launcher, its output in pipes."""
        return subprocess.Popen(self.command(body, *options, flags=flags), cwd=self.folder, text=True, stdin=stdin,
                                env=self.environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, body: str, *options: object, flags: tuple[str, ...] = (),
            **variables: object) -> tuple[int, str, str]:
        """(status, standard output, standard error) of a job that ends by itself."""
        return self.finish(self.start(body, *options, flags=flags, **variables))

    def finish(self, process: subprocess.Popen) -> tuple[int, str, str]:
        """(status, standard output, standard error); nothing of the job is left."""
        output, errors = process.communicate(timeout=SECONDS)
        assert processes_of(self.mark) == {}
        return process.returncode, output, errors

    def wait_for(self, *names: str) -> None:
        """Until the job has made these files."""
        deadline = time.monotonic() + SECONDS
        while not all((self.folder / name).exists() for name in names):
            assert time.monotonic() < deadline, names
            time.sleep(0.02)

    def signalled(self, process: subprocess.Popen, number: signal.Signals, *names: str) -> tuple[int, str, str]:
        """`finish` after a signal to the launcher alone, when the job has made the files."""
        self.wait_for(*names)
        process.send_signal(number)
        return self.finish(process)


@pytest.fixture
def launcher(tmp_path):
    started = Launcher(tmp_path)
    yield started
    end(processes_of(started.mark))
