"""Resident ranks: one launch per world size serves the cases of many tests.

A case is a function of an importable module, sent by name as `module:function` with JSON arguments. Every rank calls it
and returns a JSON value. An exception on any rank reaches the test that asked, as CaseFailed; the other ranks may wait
for that rank in a collective then, so the launch is ended and the next case starts a new one.
"""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import connection
from pathlib import Path

from tests.distributed.launch import end_tree, free_port, worker_environment, worker_logs

WORKER = Path(__file__).with_name("pool_worker.py")
START_SECONDS, CASE_SECONDS = 300, 600


class CaseFailed(Exception):
    """A case raised on a rank, a rank died, or the case took too long: with the traceback and the ranks' logs."""


class RankPool:
    """`world` CPU ranks under msrun (one: a plain process), one thread each, started at the first case."""

    def __init__(self, world: int, env: dict[str, str] | None = None) -> None:
        self.world, self.env = world, env or {}
        self._job: subprocess.Popen | None = None
        self._ranks: dict[int, connection.Connection] = {}

    def run(self, case: str, *arguments: object, seconds: float = CASE_SECONDS) -> list:
        """What `module:function` returns for the JSON `arguments`, by rank. Raises CaseFailed."""
        if self._job is None:
            self._start()
        message = json.dumps([case, arguments]).encode()
        try:
            for rank in self._ranks.values():
                rank.send_bytes(message)
        except OSError as error:
            raise self._failure(f"{case}: a rank is gone ({error})") from error
        replies = self._collect(dict(self._ranks), time.monotonic() + seconds, case)
        return [replies[rank]["result"] for rank in range(self.world)]

    def close(self) -> None:
        """End the ranks. They are killed: leaving a job takes msrun's ranks 8 s, and jobs that end by themselves are
        tested where jobs are (tests/scripts, test_failures.py).
        """
        if self._job is not None:
            end_tree(self._job.pid)
            self._job.wait()
            self._forget()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ranks_")
        folder = Path(self._folder.name)
        address, words = str(folder / "host"), [sys.executable, "-u", str(WORKER)]
        if self.world > 1:
            words = ["msrun", "--worker_num", str(self.world), "--local_worker_num", str(self.world), "--master_port",
                     str(free_port()), "--log_dir", str(folder), "--join", "True", str(WORKER)]
        # A rank that dies closes its connection, so that the scheduler's heartbeat has nothing to find out: on a loaded
        # machine it must not take a slow rank for a dead one.
        env = worker_environment({"MS_NODE_TIMEOUT": "120", **self.env})
        with socket.socket(socket.AF_UNIX) as listener, (folder / "launcher.log").open("wb") as log:
            listener.bind(address)
            listener.listen(self.world)
            listener.settimeout(0.2)
            self._job = subprocess.Popen([*words, address], env=env, cwd=folder, start_new_session=True, stdout=log,
                                         stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            until = time.monotonic() + START_SECONDS
            while len(self._ranks) < self.world:
                if self._job.poll() is not None or time.monotonic() > until:
                    raise self._failure(f"{self.world} ranks did not start")
                with contextlib.suppress(TimeoutError):
                    rank = connection.Connection(listener.accept()[0].detach())
                    self._ranks[json.loads(rank.recv_bytes())] = rank

    def _collect(self, waiting: dict[int, connection.Connection], until: float, case: str) -> dict[int, dict]:
        replies = {}
        while waiting:
            ready = connection.wait(list(waiting.values()), max(0.0, until - time.monotonic()))
            if not ready:
                raise self._failure(f"{case}: no answer from rank {', '.join(map(str, sorted(waiting)))}")
            for rank in [rank for rank, link in waiting.items() if link in ready]:
                try:
                    replies[rank] = json.loads(waiting.pop(rank).recv_bytes())
                except (EOFError, OSError) as error:
                    raise self._failure(f"{case}: rank {rank} died") from error
                if "error" in replies[rank]:
                    raise self._failure(f"{case}: rank {rank} raised\n{replies[rank]['error']}")
        return replies

    def _failure(self, text: str) -> CaseFailed:
        """End what runs and say what happened, with the ranks' logs."""
        folder = Path(self._folder.name)
        launcher = (folder / "launcher.log").read_text(errors="replace")[-3000:]
        logs = worker_logs(folder)
        self.close()
        return CaseFailed(f"{text}\n--- launcher\n{launcher}\n{logs}")

    def _forget(self) -> None:
        for rank in self._ranks.values():
            rank.close()
        self._folder.cleanup()
        self._job, self._ranks = None, {}
