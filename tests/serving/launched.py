"""A server with a model: the serving script as a job of its own, or in this process."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEY = "k"


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def wait_for_health(url: str, seconds: float = 120.0) -> None:
    """Until the server takes requests."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url + "/health", timeout=5).read()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


class Launched:
    """The script over the model that tests/inference/tiny_job.py writes into `folder`, on `tp` x `pp` ranks."""

    def __init__(self, folder: Path, *flags: str, tp: int = 2, pp: int = 1) -> None:
        port = free_port()
        self.url, self.model, self.ranks = f"http://127.0.0.1:{port}", "glm4-9b", tp * pp
        logs = folder / f"logs{port}"
        self._log = logs / "serve_glm4_9b"
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                       "VIRTUAL_ENV": sys.prefix, "CHECKPOINT": str(folder / "checkpoint"),
                       "TOKENIZER_PATH": str(folder / "tokenizer"), "DTYPE": "fp32", "NPUS_PER_NODE": str(self.ranks),
                       "TP": str(tp), "PP": str(pp), "PORT": str(port), "MASTER_PORT": str(free_port()),
                       "DEVICE_TARGET": "CPU", "API_KEY": KEY, "LOG_ROOT": str(logs)}
        script = ROOT / "examples" / "mindspore" / "glm4" / "serve_glm4_9b_ms.sh"
        self.process = subprocess.Popen(["bash", script, *flags], env=environment, cwd=folder, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)
        wait_for_health(self.url)

    def rank(self, number: int) -> int:
        """Process id of a rank."""
        return int(re.search(r"is process (\d+)", (self._log / f"worker_{number}.log").read_text())[1])

    def memory(self) -> list[int]:
        """Anonymous resident memory of each rank, in KiB."""
        status = [Path(f"/proc/{self.rank(number)}/status").read_text() for number in range(self.ranks)]
        return [int(re.search(r"RssAnon:\s+(\d+)", text)[1]) for text in status]

    def end(self, seconds: float = 60.0) -> tuple[int, str]:
        """(status, what it printed), when it has ended."""
        out, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, out


def serve_beside(serve: Callable[[], None], talk: Callable[[str], None], port: int) -> None:
    """Run `serve`, a server at `port` that ends at SIGTERM, in this process, and `talk(url)` in a thread beside it.

    `talk` sends the signal. Raises what it raises.
    """
    url, failures = f"http://127.0.0.1:{port}", []

    def client() -> None:
        try:
            wait_for_health(url)
            talk(url)
        except BaseException as error:
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    thread = threading.Thread(target=client)
    thread.start()
    try:
        serve()
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
    thread.join()
    if failures:
        raise failures[0]
