"""Start real ranks under `msrun` from a test."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_msrun(script: str | Path, ranks: int, *args: object, env: dict[str, str] | None = None,
              timeout: float = 300) -> subprocess.CompletedProcess:
    """Run `script` with `args` on `ranks` CPU processes and wait; they use one thread each.

    Returns the finished job; `stdout` is msrun's own output, `stderr` every worker's log when it failed (else empty).
    Raises subprocess.TimeoutExpired, with the logs in `stderr`, after ending all its processes.
    """
    with tempfile.TemporaryDirectory(prefix="msrun_") as log_dir:
        command = ["msrun", "--worker_num", str(ranks), "--local_worker_num", str(ranks), "--master_port",
                   str(free_port()), "--log_dir", log_dir, "--join", "True", str(script), *map(str, args)]
        job = subprocess.Popen(command, env=worker_environment(env), cwd=log_dir, text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as expired:
            end_tree(job.pid)
            output, _ = job.communicate()
            raise subprocess.TimeoutExpired(command, timeout, output, worker_logs(log_dir)) from expired
        logs = worker_logs(log_dir) if job.returncode else ""
        return subprocess.CompletedProcess(command, job.returncode, output, logs)


def worker_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a job: this interpreter's `msrun` and `python` first, the checkout importable, CPU, one
    thread.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "DEVICE_TARGET": "CPU", "OMP_NUM_THREADS": "1",
            "MS_NODE_TIMEOUT": "8",
            "MS_RETRY_INTERVAL_LOWER": "1", "MS_RETRY_INTERVAL_UPPER": "1", **(extra or {})}


def script_environment(**variables: object) -> dict[str, str]:
    """The environment in which a test runs an example script: this interpreter's, on CPU, tiny model, with `variables`."""
    return {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MODEL": "glm4-tiny", "DTYPE": "fp32", "DEVICE_TARGET": "CPU",
            **{name: str(value) for name, value in variables.items()}}


def processes_of(mark: str) -> dict[int, int | None]:
    """{pid: rank} of all processes whose environment has JOB_MARK=`mark`; rank None for those that are not workers."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # msrun gives each worker's environment to the `tail` of its log too
            is_python = b"python" in (process / "cmdline").read_bytes().split(b"\0")[0]
            entries = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue  # ended meanwhile
        environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
        if environment.get("JOB_MARK") == mark and not ended:
            is_worker = is_python and environment.get("MS_ROLE") == "MS_WORKER"
            found[int(process.name)] = int(environment["RANK_ID"]) if is_worker else None
    return found


def wait_for_steps(process: subprocess.Popen) -> None:
    """Read the job's terminal up to the third iteration."""
    for line in process.stdout:
        if "iteration        3/" in line:
            break


def workers_after_steps(process: subprocess.Popen, mark: str, ranks: int) -> dict[int, int]:
    """{rank: pid} of a job started with JOB_MARK=`mark`, when its terminal has shown the third iteration."""
    wait_for_steps(process)
    workers = {rank: pid for pid, rank in processes_of(mark).items() if rank is not None}
    assert sorted(workers) == list(range(ranks))
    return workers


def end(pids: Iterable[int]) -> None:
    """Kill these processes, as far as they still run."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def worker_logs(log_dir: str | Path) -> str:
    """The end of every worker's log under msrun."""
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}"
                     for path in sorted(Path(log_dir).glob("worker_*.log")))


def end_tree(msrun: int) -> None:
    """Kill msrun and its descendants: the workers are in sessions of their own."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state parent ..."; the name may hold spaces and brackets.
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # ended meanwhile
    ending = [msrun]
    for process in ending:
        ending += [child for child, parent in parents.items() if parent == process]
    end(ending)
