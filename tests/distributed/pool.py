"""Resident ranks: one start per world size serves the cases of many tests.

A case is a function of an importable module, sent by name as `module:function` with JSON arguments. Every rank calls it
and returns a JSON value. An exception on any rank reaches the test that asked, as CaseFailed; the other ranks may wait
for that rank in a collective then, so all are ended and the next case starts new ones.

The ranks are forks of one process that has imported MindSpore (nursery.py), where jobs under msrun import it once for
each rank, once for the scheduler and once for msrun itself. Jobs under msrun are tested where jobs are (tests/scripts).
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from multiprocessing import connection
from pathlib import Path

from tests.distributed.launch import free_port, worker_environment, worker_logs

NURSERY = Path(__file__).with_name("nursery.py")
START_SECONDS, CASE_SECONDS = 300, 600


class CaseFailed(Exception):
    """A case raised on a rank, a rank died, or the case took too long: with the traceback and the ranks' logs."""


class Nursery:
    """The process that forks ranks. It ends, and all of them with it, when this process does."""

    def __init__(self) -> None:
        # A rank that dies closes its connection, so that the scheduler's heartbeat has nothing to find out: on a loaded
        # machine it must not take a slow rank for a dead one.
        environment = worker_environment({"MS_NODE_TIMEOUT": "120"})
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", str(NURSERY), str(theirs.fileno())], env=environment,
                pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL)
        self._link = connection.Connection(ours.detach())

    def start(self, folder: Path, world: int) -> list[int]:
        """Start `world` ranks, and a scheduler if they are several; returns their processes. They connect to the socket
        `folder`/host and keep their logs in `folder`.
        """
        return self._ask("start", str(folder), world, free_port())

    def end(self, processes: list[int]) -> None:
        """Kill these processes of `start` and wait until they are gone."""
        self._ask("end", processes)

    def _ask(self, *request: object):
        self._link.send_bytes(json.dumps(request).encode())
        if not self._link.poll(START_SECONDS):
            raise CaseFailed(f"the nursery does not {request[0]} ranks")
        try:
            return json.loads(self._link.recv_bytes())
        except EOFError as error:
            raise CaseFailed(f"the nursery ended with status {self._process.wait()}") from error


nursery = cache(Nursery)


class RankPool:
    """`world` CPU ranks, one thread each, started by `start` or at the first case."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._processes: list[int] = []
        self._ranks: dict[int, connection.Connection] = {}

    def run(self, case: str, *arguments: object, seconds: float = CASE_SECONDS) -> list:
        """What `module:function` returns for the JSON `arguments`, by rank. Raises CaseFailed."""
        if not self._processes:
            self.start()
        self._meet()
        message = json.dumps([case, arguments]).encode()
        try:
            for rank in self._ranks.values():
                rank.send_bytes(message)
        except OSError as error:
            raise self._failure(f"{case}: a rank is gone ({error})") from error
        replies = self._collect(dict(self._ranks), time.monotonic() + seconds, case)
        return [replies[rank]["result"] for rank in range(self.world)]

    def close(self) -> None:
        """End the ranks. They are killed: jobs that end by themselves are tested where jobs are."""
        if self._processes:
            nursery().end(self._processes)
            for rank in self._ranks.values():
                rank.close()
            self._listener.close()
            self._folder.cleanup()
            self._processes, self._ranks = [], {}

    def start(self) -> None:
        """Have the ranks started; they join each other while the caller goes on."""
        self._folder = tempfile.TemporaryDirectory(prefix="ranks_")
        folder = Path(self._folder.name)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "host"))
        self._listener.listen(self.world)
        self._listener.settimeout(START_SECONDS)
        self._processes = nursery().start(folder, self.world)

    def _meet(self) -> None:
        while len(self._ranks) < self.world:
            try:
                rank = connection.Connection(self._listener.accept()[0].detach())
            except TimeoutError as error:
                raise self._failure(f"{self.world} ranks did not start") from error
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
        logs = worker_logs(self._folder.name)
        self.close()
        return CaseFailed(f"{text}\n{logs}")
