"""What a job consists of: its command, its environment, its logs; one process or ranks under msrun."""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.launch.failure import report
from mindspeed_llm.launch.supervision import Supervised, attend, children_of, kill
from mindspeed_llm.launch.terminal import Follower

# Printed by config/scheduler.py.
_SCHEDULER = re.compile(r"^scheduler is process (\d+)$", re.MULTILINE)
# msrun's own words about a rank that did not end well.
_WORKER_FAILED = re.compile(rb"Worker process .* exit with exception")
_KILLING_RANKS = 0.5    # seconds that msrun gets for it


@dataclass(frozen=True)
class Job:
    """One script with its flags on `nnodes` nodes of `ranks_per_node` ranks; this is node `node_rank`."""

    name: str
    log_root: Path
    script: str
    flags: tuple[str, ...] = ()
    nnodes: int = 1
    node_rank: int = 0
    ranks_per_node: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 6000

    @property
    def world(self) -> int:
        """Ranks of all nodes."""
        return self.nnodes * self.ranks_per_node

    @property
    def log_dir(self) -> Path:
        """Folder of the ranks' logs; one for every node, which may share the storage."""
        folder = self.log_root / self.name
        return folder if self.nnodes == 1 else folder / f"node_{self.node_rank}"


def run(job: Job) -> int:
    """Run the job to its end; returns the exit status. Raises UserError when its program is not on PATH."""
    environment = job_environment(job, os.environ)
    job.log_root.mkdir(parents=True, exist_ok=True)
    if not {"--dry-run", "--dry-run=true"}.isdisjoint(job.flags):   # a plan needs the number of ranks, not the ranks
        return _run_process(job, {**environment, "RANK_SIZE": str(job.world)})
    return _run_process(job, environment) if job.world == 1 else _run_ranks(job, environment)


def job_environment(job: Job, base: Mapping[str, str]) -> dict[str, str]:
    """`base` and, on CPU, what ranks that share a machine's cores need; what is set already stays."""
    environment = dict(base)
    if not _on_cpu(base):
        return environment
    wanted = {
        # Ranks share the cores; idle OpenMP threads must not spin on a core that another rank needs.
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // job.ranks_per_node)),
        "OMP_WAIT_POLICY": "PASSIVE",
        # Seconds until msrun's scheduler gives up on ranks that are gone (by default it keeps a failed job for half a
        # minute).
        "MS_NODE_TIMEOUT": "10",
        # Ranks that find the scheduler busy ask again at once, not after seconds.
        "MS_RETRY_INTERVAL_LOWER": "1", "MS_RETRY_INTERVAL_UPPER": "1",
    }
    return environment | {name: value for name, value in wanted.items() if not base.get(name)}


def _on_cpu(environment: Mapping[str, str]) -> bool:
    target = environment.get("DEVICE_TARGET")
    return target == "CPU" if target else not any(Path("/dev").glob("davinci[0-9]*"))


def _run_process(job: Job, environment: Mapping[str, str]) -> int:
    """One Python process, in this process group: it may read the terminal, and Ctrl-C reaches it without our help."""
    log = job.log_root / f"{job.name}.log"
    follower = Follower(log, environment)

    def pass_on(pid: int, number: int, from_terminal: bool) -> None:
        if not from_terminal:
            kill(pid, number)

    ended = attend(["python", job.script, *job.flags], log, environment, pass_on, lambda _: follower.show())
    follower.close()
    return ended.status


def _run_ranks(job: Job, environment: Mapping[str, str]) -> int:
    """This node's ranks through msrun, in a session of their own: a signal reaches them through us only."""
    shutil.rmtree(job.log_dir, ignore_errors=True)
    job.log_dir.mkdir(parents=True)
    print(f"starting {job.world} ranks ({job.ranks_per_node} on this node), logs in {job.log_dir}", flush=True)
    command = ["msrun", "--worker_num", job.world, "--local_worker_num", job.ranks_per_node,
               "--master_addr", job.master_addr, "--master_port", job.master_port, "--node_rank", job.node_rank,
               "--log_dir", job.log_dir, "--join", "True", job.script, *job.flags]
    followers = [Follower(job.log_dir / "worker_0.log", environment)] if job.node_rank == 0 else []
    of_failed, of_done = _SchedulerOfFailedJob(job.log_dir / "msrun.log"), _SchedulerOfDoneJob(job)

    def look(msrun: int) -> None:
        for follower in followers:
            follower.show()
        if job.nnodes == 1:     # with several nodes it must live to tell the others
            of_failed.end(msrun)
            of_done.end(msrun)

    ended = attend(list(map(str, command)), job.log_dir / "msrun.log", environment, _pass_on_to_ranks, look,
                   new_session=True)
    for follower in followers:
        follower.close()
    if ended.status != 0:
        report(job.log_dir, job.nnodes, job.node_rank, job.ranks_per_node, ended.passed_on, sys.stderr)
    return _status_of_ranks(ended)


def _status_of_ranks(ended: Supervised) -> int:
    """msrun ends with 1 whatever ended its ranks."""
    return 128 + ended.passed_on if ended.status != 0 and ended.passed_on is not None else ended.status


def _pass_on_to_ranks(msrun: int, _number: int, _from_terminal: bool) -> None:
    """The ranks get a SIGTERM. msrun then ends with them; ended first, it would leave them without a scheduler, which
    ranks that save before they end (--exit-signal-handler) still need. Before it has started any, msrun ends.

    Never SIGINT: MindSpore's communicator in a rank catches it, stops working, and does not tell Python.
    """
    for pid in [child for child in children_of(msrun) if _is_rank(child)] or [msrun]:
        kill(pid, signal.SIGTERM)


def _is_rank(pid: int) -> bool:
    """True for a running rank: msrun starts it in a session of its own, not so its scheduler and readers of logs."""
    try:
        # "pid (name) state parent group session ..."; the name may hold spaces and brackets
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:4]
    except OSError:
        return False
    return state != "Z" and session == str(pid)


class _SchedulerOfFailedJob:
    """Of a failed job msrun ends the ranks, then waits for its scheduler, which waits MS_NODE_TIMEOUT for the ranks.

    `end`, called again and again, ends the scheduler as soon as msrun's `log` tells of the failure.
    """

    def __init__(self, log: Path) -> None:
        self._log, self._offset, self._line = log, 0, b""
        self._due: float | None = None

    def end(self, msrun: int) -> None:
        """Look whether it is time, and if it is kill all that msrun has started."""
        if self._due is None:
            if self._told_of_failure():
                self._due = time.monotonic() + _KILLING_RANKS
        elif time.monotonic() >= self._due:
            for child in children_of(msrun):
                kill(child)

    def _told_of_failure(self) -> bool:
        with self._log.open("rb") as stream:
            stream.seek(self._offset)
            new = stream.read()
        self._offset += len(new)
        text = self._line + new
        self._line = text[text.rfind(b"\n") + 1:]
        return _WORKER_FAILED.search(text) is not None


class _SchedulerOfDoneJob:
    """When its ranks have ended, msrun waits up to five seconds for its scheduler to find that out; `end`, called
    again and again, tells it.
    """

    def __init__(self, job: Job) -> None:
        self._folder, self._ranks, self._told = job.log_dir, job.ranks_per_node, False

    def end(self, msrun: int) -> None:
        """Look whether all ranks have started and none runs; if so end the scheduler."""
        started = sum(1 for _ in self._folder.glob("worker_*.log"))     # each just before its rank
        if self._told or started < self._ranks or any(map(_is_rank, children_of(msrun))):
            return
        for pid in _SCHEDULER.findall((self._folder / "scheduler.log").read_text(encoding="utf-8", errors="replace")):
            kill(int(pid), signal.SIGTERM)
            self._told = True
