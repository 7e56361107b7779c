"""One rank of a RankPool: joins the job, then runs the cases that arrive, until the test session closes the connection.

    msrun ... pool_worker.py SOCKET
"""

import json
import sys
import traceback
from importlib import import_module
from multiprocessing import connection

import mindspore as ms

from mindspeed_llm import kernels
from mindspeed_llm.config.errors import run_main
from mindspeed_llm.runtime import collectives, device


def answer(message: bytes) -> dict:
    """`{"result": what the case returned}` or `{"error": traceback}`."""
    case, arguments = json.loads(message)
    module, function = case.split(":")
    try:
        kernels.setup()  # fp32, whatever the case before has chosen
        return {"result": getattr(import_module(module), function)(*arguments)}
    except BaseException:  # also SystemExit: nothing that a case does may end the rank without an answer
        return {"error": traceback.format_exc()}


def main() -> None:
    """Serve until the connection closes."""
    # Ranks share the cores: the threads of MindSpore's own operators spin between operators.
    ms.set_context(runtime_num_threads=1)
    device.setup()
    kernels.setup()
    world = collectives.init()
    with connection.Client(sys.argv[1], "AF_UNIX") as host:
        host.send_bytes(json.dumps(world.rank).encode())
        while True:
            try:
                message = host.recv_bytes()
            except EOFError:
                return
            host.send_bytes(json.dumps(answer(message)).encode())


if __name__ == "__main__":
    run_main(main)
