"""Tokens/s of the server with several clients, against one client, and against FastAPI over Hugging Face's `generate`.

    python benchmarks/serve_throughput.py --peer-python path/to/venv/bin/python --dtype fp32

Both servers have the same weights, answer POST /v1/completions over HTTP greedily, and run in processes of their own.
The peer's environment is that of train_step.py with fastapi and uvicorn (pip install fastapi==0.163.2 uvicorn==0.54.0);
its server does what such programs do: `model.generate` for one request after the other. A turn is --requests prompts of
--seq random tokens, none asked before, with --tokens new tokens each. Turns alternate: ours with all clients, ours with
one, the peer with all; medians and ratios are printed.

Then the time to the first token of our server for prompts of --prefix tokens and 32 more: all new, and with a beginning
that was asked before.
"""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from decode_step import our_generator
from train_step import BENCH, peer_model, read_inputs, settings, side_options, step_options, write_inputs

ENDING = 32     # tokens after the prefix
DRAW = np.random.default_rng(1)


def ours(data, options) -> None:
    """Our server, as --task serve runs it, over a tokenizer that spells few of the ids: texts are of no interest."""
    generator = our_generator(data, options)
    from mindspeed_llm.config.serving import ServeConfig
    from mindspeed_llm.data.tokenizer import load_tokenizer
    from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
    from mindspeed_llm.generation.engine import Engine, EngineLimits
    from mindspeed_llm.tasks.inference.serving.app import Served
    from mindspeed_llm.tasks.inference.serving.jobs import Jobs
    from mindspeed_llm.tasks.inference.serving.server import Server, bind
    folder = Path(options.data).parent / "tokenizer"
    write_chatglm_tokenizer(folder, train_tiktoken_bpe(["some text to learn from"] * 4, 300))
    tokenizer = load_tokenizer(str(folder))
    tokenizer.stop_ids, tokenizer.vocab_size = [], generator.vocab_size     # every answer is as long as asked for
    engine = Engine(generator, EngineLimits(65536))
    Server(engine, Jobs(tokenizer, None, "bench", generator.max_length), ServeConfig(), Served("bench", None),
           bind("127.0.0.1", 0)).run()


def peer(data, options) -> None:
    """The peer's server."""
    import socket

    import torch
    import uvicorn
    from fastapi import FastAPI, Request
    torch.set_num_threads(options.threads)
    model = peer_model(data, options.dtype).eval()
    app, turn = FastAPI(), asyncio.Lock()

    def answer(body):
        with torch.inference_mode():
            prompt = torch.tensor([body["prompt"]])
            ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                                 max_new_tokens=body["max_tokens"], min_new_tokens=body["max_tokens"])
        return ids[0, prompt.shape[1]:].tolist()

    @app.post("/v1/completions")
    async def completions(request: Request):
        body = await request.json()
        async with turn:
            ids = await asyncio.to_thread(answer, body)
        return {"ids": ids, "usage": {"completion_tokens": len(ids)}}
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def work(options) -> None:
    """A worker: a server, until it is ended."""
    {"ours": ours, "peer": peer}[options.worker](read_inputs(options.data), options)


class Client:
    """Asks a server that runs in a process of its own."""

    def __init__(self, name: str, python: str, data: Path, options) -> None:
        self.process = subprocess.Popen(
            [python, __file__, *sys.argv[1:], "--worker", name, "--data", str(data)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, **settings(options), "OMP_WAIT_POLICY": "PASSIVE"})
        places = (re.search(r"serving.* at http://([\d.:]+)", line) for line in self.process.stdout)
        found = next((place for place in places if place), None)
        if found is None:
            raise RuntimeError(f"the server {name} has ended with status {self.process.wait()}")
        self._place = found[1]
        threading.Thread(target=self.process.stdout.read, daemon=True).start()     # what it says is of no interest

    def ask(self, prompt: list[int], tokens: int, *, stream: bool = False) -> tuple[float, int]:
        """(seconds to the first byte of the answer, new tokens)."""
        connection = http.client.HTTPConnection(self._place, timeout=600)
        body = {"model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}
        started = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        first = response.read(1)
        seconds = time.perf_counter() - started
        text = first + response.read()
        connection.close()
        if response.status != 200:
            raise RuntimeError(text.decode())
        return seconds, tokens if stream else json.loads(text)["usage"]["completion_tokens"]

    def turn(self, prompts: list[list[int]], tokens: int, clients: int) -> float:
        """New tokens/s of so many clients that share the prompts."""
        counts: list[int] = []

        def client(number: int) -> None:
            for prompt in prompts[number::clients]:
                counts.append(self.ask(prompt, tokens)[1])
        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(counts) != len(prompts):
            raise RuntimeError("a client failed")
        return sum(counts) / (time.perf_counter() - started)

    def end(self) -> None:
        """End the server, if it still runs."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def main() -> None:
    parser = step_options(__doc__, steps=5)
    parser.set_defaults(seq=64)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=8, help="of a turn")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a request")
    parser.add_argument("--prefix", type=int, default=2000, help="tokens of the shared beginning")
    options = side_options(parser, work)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        data = Path(folder) / "inputs.npz"
        write_inputs(data, 1, 1)
        mine, theirs = (Client(name, python, data, options)
                        for name, python in (("ours", sys.executable), ("peer", options.peer_python)))
        for server in (mine, theirs):
            servers.callback(server.end)
        throughput(mine, theirs, options)
        theirs.end()
        first_token(mine, options)


def prompts(count: int, length: int) -> list[list[int]]:
    """Random ids that no prompt had before."""
    return DRAW.integers(0, BENCH["padded_vocab_size"], (count, length)).tolist()


def throughput(mine: Client, theirs: Client, options) -> None:
    """Print tokens/s of turns that alternate."""
    turns = {"ours": (mine, options.clients), "ours, one client": (mine, 1), "peer": (theirs, options.clients)}
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(options.steps + 1):     # the first, a short one, warms up
        for name, (server, clients) in turns.items():
            asked, tokens = (prompts(options.requests, options.seq), options.tokens) if number else (
                prompts(clients, options.seq), 4)
            speeds[name].append(server.turn(asked, tokens, clients))
    medians = {name: statistics.median(found[1:]) for name, found in speeds.items()}
    for name, median in medians.items():
        print(f"{name}: median {median:.0f} tokens/s ({min(speeds[name][1:]):.0f}-{max(speeds[name][1:]):.0f})")
    print(f"{options.dtype}, {options.clients} clients, {options.seq} + {options.tokens} tokens"
          f"{f', {options.isa}' if options.isa else ''}: {medians['ours'] / medians['ours, one client']:.2f}x one "
          f"client, {medians['ours'] / medians['peer']:.2f}x the peer", flush=True)


def first_token(mine: Client, options) -> None:
    """Print the time to the first token with a beginning that is new, and with one that is known."""
    fresh, shared = [], []
    (prefix,) = prompts(1, options.prefix)
    mine.ask(prefix, 1)
    for _ in range(options.steps):
        (other,), endings = prompts(1, options.prefix), prompts(2, ENDING)
        fresh.append(mine.ask(other + endings[0], 1, stream=True)[0])
        shared.append(mine.ask(prefix + endings[1], 1, stream=True)[0])
    new, known = statistics.median(fresh), statistics.median(shared)
    print(f"first token after {options.prefix} + {ENDING} tokens: {new * 1000:.0f} ms, with a known beginning "
          f"{known * 1000:.0f} ms ({known / new:.2f}x)")


if __name__ == "__main__":
    main()
