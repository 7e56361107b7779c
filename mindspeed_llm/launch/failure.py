"""Why a job of ranks failed, from its logs: the lost nodes, the rank that a signal ended, the ranks' own errors."""

import re
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

# The scheduler, on node 0. It stops at the first rank that it misses, which need not be the one that failed: msrun there
# has ended all ranks of the node by then.
_TIMED_OUT = re.compile(r"The node: (\d+) is timed out\.")
# msrun, on every node; the number of a signal is negative.
_EXITED = re.compile(r"Worker process (\d+) exit with exception\. Error code: -(\d+)\.")
_PROCESS = re.compile(r"^rank (\d+) is process (\d+)$")      # printed by session/__init__.py
_ERROR = re.compile(r"(rank \d+|scheduler): (error|interrupted)")   # printed by config/errors.py
_END = 5    # lines


def report(log_dir: Path, nnodes: int, node_rank: int, ranks_per_node: int, passed_on: signal.Signals | None,
           stream: TextIO) -> None:
    """Tell why the job failed: what was lost, what a signal ended, what the ranks said; the ends of the logs if that is
    nothing. `passed_on` is the signal, if any, that the launcher got; the ranks then got a SIGTERM.
    """
    where = f" on node {node_rank}" if nnodes > 1 else ""
    ended = "failed" if passed_on is None else f"was ended by {passed_on.name}"
    print(f"error: the job {ended}{where}; logs in {log_dir}", file=stream)
    lines = _lost_ranks(log_dir, node_rank, ranks_per_node)
    lines += _ended_by_signal(log_dir, nnodes, node_rank, passed_on, others_lost=bool(lines))
    lines += _own_errors(log_dir)
    if not lines and passed_on is None:
        lines = _ends(log_dir)
    for line in lines:
        print(line, file=stream)
    stream.flush()


def _lost_ranks(log_dir: Path, node_rank: int, ranks_per_node: int) -> list[str]:
    missed = {int(rank) // ranks_per_node for line in _lines(log_dir / "scheduler.log")
              for rank in _TIMED_OUT.findall(line)}
    return [f"rank {rank} stopped answering: see the terminal of node {node}" for node in sorted(missed - {node_rank})
            for rank in range(node * ranks_per_node, (node + 1) * ranks_per_node)]


def _ended_by_signal(log_dir: Path, nnodes: int, node_rank: int, passed_on: signal.Signals | None, *,
                     others_lost: bool) -> list[str]:
    found = []
    ranks = {process: rank for log in _worker_logs(log_dir) for line in _lines(log)
             for rank, process in _PROCESS.findall(line)}
    exits = [match for line in _lines(log_dir / "msrun.log") for match in _EXITED.findall(line)]
    for process, number in exits:
        if process not in ranks or (passed_on is not None and int(number) == signal.SIGTERM):
            continue
        if nnodes > 1 and int(number) == signal.SIGTERM:    # the engine ends a rank so when others are gone
            if not (others_lost or found):
                found.append(f"no rank of node {node_rank} failed by itself: see the terminals of the other nodes")
        else:
            found.append(f"rank {ranks[process]} was ended by signal {number}: killed from outside, or out of memory")
    return found


def _own_errors(log_dir: Path) -> list[str]:
    return sorted({line for log in _worker_logs(log_dir) for line in _lines(log) if _ERROR.match(line)})


def _ends(log_dir: Path) -> list[str]:
    found = []
    for log in (*_worker_logs(log_dir), log_dir / "msrun.log"):
        found += [f"--- end of {log}", *deque(_lines(log), _END)]
    return found


def _worker_logs(log_dir: Path) -> list[Path]:
    return sorted(log_dir.glob("worker_*.log"))


def _lines(log: Path) -> Iterator[str]:
    if not log.exists():
        return
    with log.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            yield line.rstrip("\n")
