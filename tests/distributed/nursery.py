"""Where the ranks of RankPools come from: imports MindSpore once and forks ranks, which the variables start that
MindSpore documents for a cluster without msrun ("Dynamic Cluster Startup").

    nursery.py FD       FD: a socket, whose other end tells what to start and end

A rank connects to its pool, joins its job, and runs the cases that arrive until the pool closes the connection. The
process has one thread, so that a fork of it is whole: nothing here may use MindSpore before the fork.
"""

import gc
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from multiprocessing import connection
from pathlib import Path

import mindspore  # noqa: F401  imported once, here, as what cases need is

import pretrain_gpt  # noqa: F401
from mindspeed_llm import kernels
from mindspeed_llm.config.errors import run_main
from mindspeed_llm.runtime import collectives, device

SCHEDULER = -1


def serve(host: connection.Connection) -> None:
    """Start and end ranks as the test session asks, until it is gone."""
    gc.freeze()     # a rank's collections would copy every page that holds an object
    children: set[int] = set()
    try:
        while True:
            request, *arguments = json.loads(host.recv_bytes())
            if request == "start":
                folder, world, port = arguments
                started = [_fork(host, Path(folder), rank, world, port)
                           for rank in range(SCHEDULER if world > 1 else 0, world)]
                children.update(started)
                host.send_bytes(json.dumps(started).encode())
            else:
                _end(*arguments)
                children.difference_update(*arguments)
                host.send_bytes(b"null")
    except (EOFError, ConnectionResetError):
        _end(children)


def _end(processes) -> None:
    for process in processes:   # and what it has started, a compiler perhaps
        os.killpg(process, signal.SIGKILL)  # which is there, if only as a zombie: nobody else waits for it
    for process in processes:
        os.waitpid(process, 0)


def _fork(host: connection.Connection, folder: Path, rank: int, world: int, port: int) -> int:
    process = os.fork()
    if process:
        os.setpgid(process, process)    # here too, as either may be first
        return process
    os.setpgid(0, 0)
    host.close()
    os.chdir(folder)
    log = os.open("scheduler.log" if rank == SCHEDULER else f"worker_{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if world > 1:
        os.environ |= {"MS_WORKER_NUM": str(world), "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(port),
                       "MS_TOPO_TIMEOUT": "600", "RANK_SIZE": str(world), "RANK_ID": str(max(rank, 0)),
                       "MS_ROLE": "MS_SCHED" if rank == SCHEDULER else "MS_WORKER"}
        if rank != SCHEDULER:
            os.environ |= {"MS_NODE_ID": str(rank), "DEVICE_ID": str(rank)}
    run_main(lambda: work(rank))
    os._exit(0)


def work(rank: int) -> None:
    """A rank's life, or the scheduler's, which ends with `collectives.init`."""
    if rank == SCHEDULER:
        _join()
        return
    with connection.Client("host", "AF_UNIX") as pool:
        pool.send_bytes(json.dumps(rank).encode())
        _join()
        while True:
            try:
                message = pool.recv_bytes()
            except EOFError:
                return
            pool.send_bytes(json.dumps(answer(message)).encode())


def _join() -> None:
    device.setup()
    kernels.setup()
    collectives.init()


def answer(message: bytes) -> dict:
    """`{"result": what the case returned}` or `{"error": traceback}`."""
    case, arguments = json.loads(message)
    module, function = case.split(":")
    try:
        kernels.setup()  # fp32, whatever the case before has chosen
        return {"result": getattr(import_module(module), function)(*arguments)}
    except BaseException:  # also SystemExit: nothing that a case does may end the rank without an answer
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    with connection.Connection(int(sys.argv[1])) as session:
        serve(session)
