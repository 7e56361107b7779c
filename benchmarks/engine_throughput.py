"""What continuous batching and shared beginnings are worth: one process, the model of train_step.py, no peer.

    python benchmarks/engine_throughput.py --dtype fp32
    python benchmarks/engine_throughput.py --dtype bf16 --clients 8 --rounds 5

Throughput: clients that each ask anew as soon as they are answered, against one client that asks the same one after
another; they take turns, medians of the tokens a second. Time to the first token: of a request whose first --prefix
tokens the engine has never seen, and of one that follows with the same beginning and another end, on an idle engine.
And of the second turn of a chat whose first was a prompt of --prompt tokens and an answer of --answer: at once, and when
the engine has been idle for so long that it has put the answer through as a prompt.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
from decode_step import our_generator
from train_step import BENCH, read_inputs, write_inputs


class Asking:
    """`clients` clients that share a list of requests; seconds from each submission to the first token."""

    def __init__(self, generator, requests, clients, limits):
        from mindspeed_llm.generation.engine import EndEvent, Engine, TokenEvent
        self._token, self._end = TokenEvent, EndEvent
        self._engine, self._rest, self._begun = Engine(generator, limits), list(requests), {}
        self.first, self.tokens = {}, 0
        started = time.perf_counter()
        for _ in range(clients):
            self._ask()
        self._engine.run(self._told)
        self.seconds = time.perf_counter() - started

    def _ask(self):
        if self._rest:
            request = self._rest.pop(0)
            self._begun[request.name] = time.perf_counter()
            self._engine.submit(request)
        if not self._rest:
            self._engine.drain()

    def _told(self, events):
        now = time.perf_counter()
        for event in events:
            if isinstance(event, self._token):
                self.tokens += 1
                self.first.setdefault(event.name, now - self._begun[event.name])
            elif isinstance(event, self._end):
                self._ask()


def second_turn(generator, limits, first, answer_tokens, ending, wait):
    """Seconds to the first token of a second turn, which comes at once or when the engine has read the answer again."""
    from mindspeed_llm.generation.config import GenerationConfig
    from mindspeed_llm.generation.engine import EndEvent, Engine, Request, TokenEvent
    engine, answer, times = Engine(generator, limits), [], {}

    def ask():
        blocks = (len(first) + len(answer)) // limits.block_tokens - (len(first) - 1) // limits.block_tokens
        while wait and engine.stats().reread_tokens < blocks * limits.block_tokens:
            time.sleep(0.01)
        times["asked"] = time.perf_counter()
        engine.submit(Request("second", (*first, *answer, *ending), GenerationConfig(1)))
        engine.drain()

    def told(events):
        for event in events:
            if isinstance(event, TokenEvent) and event.name == "first":
                answer.append(event.token)
            elif isinstance(event, TokenEvent):
                times["told"] = time.perf_counter()
            elif isinstance(event, EndEvent) and event.name == "first":
                threading.Thread(target=ask).start() if wait else ask()
    engine.submit(Request("first", first, GenerationConfig(answer_tokens)))
    engine.run(told)
    return times["told"] - times["asked"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=24, help="of a turn")
    parser.add_argument("--prompt", type=int, default=64, help="mean tokens of a prompt; half to one and a half of it")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--prefix", type=int, default=2000, help="tokens of the shared beginning")
    parser.add_argument("--answer", type=int, default=256, help="tokens of the answer before a second turn")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder) / "inputs.npz", 1, 1)
        generator = our_generator(read_inputs(Path(folder) / "inputs.npz"), options)
    from mindspeed_llm.generation.config import GenerationConfig
    from mindspeed_llm.generation.engine import EngineLimits, Request
    from mindspeed_llm.generation.generator import Generator
    longest = max(options.prompt * 2 + options.tokens, options.prefix + 64, options.prompt + options.answer + 64)
    generator = Generator(generator.chunks, generator.vocab_size, longest)
    limits = EngineLimits(options.clients * longest, max_sequences=options.clients)
    draw = np.random.default_rng(1)

    def ids(count):
        return tuple(draw.integers(0, BENCH["padded_vocab_size"], count).tolist())

    requests = [Request(str(number), ids(int(draw.integers(options.prompt // 2, options.prompt * 3 // 2 + 1))),
                        GenerationConfig(options.tokens)) for number in range(options.requests)]
    speeds = {options.clients: [], 1: []}
    for _ in range(options.rounds):
        for clients, found in speeds.items():
            asking = Asking(generator, requests, clients, limits)
            found.append(asking.tokens / asking.seconds)
    together, alone = (median(found) for found in speeds.values())
    print(f"{options.dtype}: {options.clients} clients {together:.1f} tokens/s, one at a time {alone:.1f} tokens/s: "
          f"{together / alone:.2f} times")

    cold, warm = [], []
    for _ in range(options.rounds):
        prefix = ids(options.prefix)
        asking = Asking(generator, [Request(name, prefix + ids(20), GenerationConfig(1)) for name in ("new", "known")],
                        1, limits)
        cold.append(asking.first["new"])
        warm.append(asking.first["known"])
    print(f"{options.dtype}: first token after {options.prefix} + 20 tokens: {median(cold) * 1000:.0f} ms, with the "
          f"beginning in memory {median(warm) * 1000:.0f} ms: {median(warm) / median(cold):.3f} of it")

    turns = {wait: [second_turn(generator, limits, ids(options.prompt), options.answer, ids(20), wait)
                    for _ in range(options.rounds)] for wait in (False, True)}
    at_once, later = (median(found) * 1000 for found in turns.values())
    print(f"{options.dtype}: first token of a second turn after an answer of {options.answer} tokens: {at_once:.0f} ms "
          f"at once, {later:.0f} ms when the engine has been idle")


if __name__ == "__main__":
    main()
