"""The life of a server: its socket, the thread of the web server, the engine's loop, signals, the end.

Rank 0 listens; its main thread and all other ranks run the engine. Rank 0 prints, on stdout::

    serving glm4 at http://127.0.0.1:8000 (API under /v1, a page to chat at /); Ctrl-C ends it
    chatcmpl-...: 12 prompt tokens (0 known), 30 new, 0.52 s, stop
    draining: 3 requests are finished first, for 30 s at most; a second signal ends at once
    the server has ended
"""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.serving import KEY_VARIABLE, ServeConfig
from mindspeed_llm.generation.engine import Engine, EngineLimits
from mindspeed_llm.runtime.collectives import barrier
from mindspeed_llm.tasks.inference.loading import load
from mindspeed_llm.tasks.inference.prompting import Prompter
from mindspeed_llm.tasks.inference.serving.app import Served, application
from mindspeed_llm.tasks.inference.serving.hub import Hub
from mindspeed_llm.tasks.inference.serving.jobs import Jobs

_LEAST_CACHE = 65536    # tokens of the key/value cache where nothing is said and a longest sequence has fewer
_REPEATED = 1.0     # seconds within which a signal is the same one again: a terminal and a launcher may both send it
_LAST_WORDS = 5     # seconds for the answers that are complete to reach their clients


def run(configs: Configs) -> None:
    """Serve until a signal ends it. Raises UserError or FileNotFoundError for what can be put right."""
    config = configs.serve
    key = api_key(config)
    # before the model: a port that is taken should not cost the time of loading
    listener = bind(config.host, config.port) if os.environ.get("RANK_ID", "0") == "0" else None
    loaded = load(configs)
    prompter = Prompter.of(loaded.configs, loaded.tokenizer, loaded.configs.inference.no_chat_template)
    engine = Engine(loaded.generator(), EngineLimits(config.kv_cache_tokens or max(_LEAST_CACHE, loaded.max_length),
                                                     config.max_sequences))
    if listener is None:
        Signals(lambda: None)   # rank 0 says when to end
        engine.run(lambda events: None)
    else:
        name = config.served_model_name or Path(configs.checkpoint.load).resolve().name
        jobs = Jobs(loaded.tokenizer, prompter.template, name, loaded.max_length, configs.inference.system_prompt)
        Server(engine, jobs, config, Served(name, key), listener).run()
    barrier()


def api_key(config: ServeConfig) -> str | None:
    """The key that clients must send, None for none. Raises UserError for one that no header can carry."""
    key = config.api_key or os.environ.get("MINDSPEED_LLM_API_KEY") or None
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"the key for clients (--api-key or {KEY_VARIABLE}) must be of ASCII letters, digits and "
                        "signs, without spaces")
    return key


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address that nobody can connect to yet. Raises UserError when that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; give an address of this machine and a port "
                        "that is free (0: any)") from None
    return listener


class Signals:
    """SIGTERM and SIGINT: the first calls `begin_end` in a thread of its own, a later one ends the process at once."""

    def __init__(self, begin_end: Callable[[], None]) -> None:
        self._begin_end, self._first_at = begin_end, None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._got)

    def _got(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            # the thread that the signal has interrupted may hold the locks that are needed now
            threading.Thread(target=self._begin_end, daemon=True).start()
        elif now - self._first_at > _REPEATED:
            os._exit(128 + number)


class Server:
    """Rank 0's part: the web server in a thread, the engine in this one."""

    def __init__(self, engine: Engine, jobs: Jobs, config: ServeConfig, served: Served,
                 listener: socket.socket) -> None:
        self._engine, self._config, self._served, self._listener = engine, config, served, listener
        self._hub = Hub(engine, config.max_requests)
        app = application(served, jobs, self._hub, say)
        self._web = uvicorn.Server(uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", lifespan="on", log_level="error", access_log=False,
            server_header=False, timeout_keep_alive=75, timeout_graceful_shutdown=_LAST_WORDS))
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Serve until a signal ends it. Raises what ended the web server, if it was not asked to end."""
        Signals(self.drain)
        thread = threading.Thread(target=self._serve, name="web server", daemon=True)
        thread.start()
        while thread.is_alive() and not self._web.started:
            time.sleep(0.01)
        if self._failure is None:
            self._say_where()
        self._engine.run(self._hub.on_events)
        self._hub.closed = True
        self._web.should_exit = True
        thread.join(2 * _LAST_WORDS)
        if self._failure is not None:
            raise self._failure
        say("the server has ended")

    def drain(self) -> None:
        """Take no more requests, finish those under way within the time that the config gives."""
        self._hub.closed = True
        stats, seconds = self._engine.stats(), self._config.drain_seconds
        say(f"draining: {stats.running + stats.waiting} requests are finished first, for {seconds} s at most; a second "
            "signal ends at once")
        self._engine.drain()
        time.sleep(seconds)
        self._engine.stop()

    def _serve(self) -> None:
        try:
            self._web.run(sockets=[self._listener])
            if not self._web.should_exit:
                raise RuntimeError("the web server has ended by itself")
        except BaseException as error:  # the end of a thread: the main one raises it
            self._failure = error
            self._engine.stop()

    def _say_where(self) -> None:
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        if self._served.api_key is None and host not in ("127.0.0.1", "::1"):
            say("WARNING: everyone who can reach this address may use the server: set a key with API_KEY or "
                "MINDSPEED_LLM_API_KEY")
        say(f"serving {self._served.model} at http://{shown}:{port} (API under /v1, a page to chat at /); Ctrl-C ends "
            "it")


def say(text: str) -> None:
    """A line on stdout."""
    print(text, flush=True)
