"""Cases of a RankPool for test_parallel_inference.py: generation and benchmarks under the parallel sizes of some
flags.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import openai
from openai.types import Completion

from mindspeed_llm.config.serving import ServeConfig
from mindspeed_llm.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_llm.generation import engine as engines
from mindspeed_llm.generation.beam_search import beam_search
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import generate
from mindspeed_llm.generation.engine import EndEvent, Engine, EngineLimits, Request
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.tasks.evaluation.job import run as evaluate
from mindspeed_llm.tasks.inference import terminal
from mindspeed_llm.tasks.inference.chat import Conversation
from mindspeed_llm.tasks.inference.loading import Loaded, load
from mindspeed_llm.tasks.inference.prompting import Prompter
from mindspeed_llm.tasks.inference.serving.app import Served
from mindspeed_llm.tasks.inference.serving.jobs import Jobs
from mindspeed_llm.tasks.inference.serving.server import Server, bind
from tests.evaluation.layouts import write_all
from tests.generation.recorded_generation import answers, beams, config, recorded_generator, rows
from tests.inference.tiny_job import configs
from tests.serving.launched import serve_beside

PROMPTS = ("A. one", "Answer: what is the one choice about (with) questions?", "D")
HEARTBEAT, LATER = 0.05, 0.15     # seconds


class SlowUser:
    """Input whose lines come later than a heartbeat."""

    def __iter__(self) -> Iterator[str]:
        for line in ("A. one\n", "", "B. 你好\n"):
            time.sleep(LATER)
            if line:
                yield line

    def readline(self) -> str:
        if not hasattr(self, "_lines"):
            self._lines = iter(self)
        return next(self._lines, "")


def generation(loaded: Loaded) -> dict:
    """Everything that is generated: ids and texts."""
    generator = loaded.generator()
    prompter = Prompter.of(loaded.configs, loaded.tokenizer, no_chat_template=False)
    config = GenerationConfig(10, frozenset(loaded.tokenizer.stop_ids), num_beams=3)
    prompts = [prompter.prompt(text) for text in PROMPTS]
    answers = generate(generator, prompts, replace(config, log_probs=True))
    result = {"greedy": [answer.ids for answer in answers], "log_probs": [answer.log_probs for answer in answers]}
    for name, sampling in (("top_k", {"temperature": 0.8, "top_k": 9}),
                           ("top_p", {"top_p": 0.9, "repetition_penalty": 1.2})):
        drawn = replace(config, do_sample=True, seed=3, **sampling)
        result[name] = [answer.ids for answer in generate(generator, prompts, drawn)]
    result["beams"] = [beam.ids for beam in beam_search(generator, prompts[0], config)]
    inbox = terminal.Inbox(loaded.state.world, SlowUser())
    talk = Conversation(generator, prompter, config)
    while (question := inbox.read()) is not None:
        talk.ask(question)
    return result | {"chat": talk.turns}


def benchmarks(folder: Path, flags: list[str], batch_size: int) -> dict:
    """Log-probabilities, answers and texts, by benchmark and subject: letters, choices of several tokens, written
    answers.
    """
    directories, found = write_all(Path(tempfile.mkdtemp(dir=folder))), {}
    for task, extra in (("mmlu", "--broadcast --num-shots 2"), ("hellaswag", ""), ("gsm8k", "--num-shots 2")):
        given = [*flags, *extra.split(), "--evaluation-batch-size", str(batch_size), "--max-new-tokens", "20", "--task",
                 task]
        given += ["--task-data-path", str(directories[task])] if task in directories else []
        found[task] = {result.name: {"log_probs": [question.log_probs for question in result.questions],
                                     "answers": [(question.prediction, question.text) for question in result.questions]}
                       for result in evaluate(configs("evaluation", folder, *given))}
    return found


def served(generator: Generator) -> dict:
    """What an engine says to requests that come at different times and do not fit its memory together; one process says
    too what each gets `alone`.
    """
    short = Generator(generator.chunks, generator.vocab_size, 64)
    engine = Engine(short, EngineLimits(80, block_tokens=16, step_tokens=32))
    draw = np.random.default_rng(4)
    config = GenerationConfig(14, log_probs=True, top_log_probs=2)
    drawn = replace(config, do_sample=True, temperature=0.8, top_k=9, seed=3, repetition_penalty=1.2)
    begin = draw.integers(0, 300, 40).tolist()
    requests = [Request(str(number), tuple(begin[:shared] + draw.integers(0, 300, more).tolist()), how)
                for number, (shared, more, how) in enumerate((
                    (40, 9, config), (0, 5, replace(drawn, max_new_tokens=50)),
                    (0, 9, replace(config, max_new_tokens=45)), (0, 20, replace(drawn, top_k=0, top_p=0.9)),
                    (40, 3, drawn)))]
    events, rest = [], iter(requests[2:])

    def told(these: list) -> None:
        events.extend(these)
        if len(events) > 20 and engine.stats().steps % 3 == 0:
            submit_next()

    def submit_next() -> None:
        request = next(rest, None)
        if request is None:
            engine.drain()
        else:
            engine.submit(request)

    def user() -> None:
        time.sleep(LATER)
        for request in requests[:2]:
            engine.submit(request)

    speaks = generator.state.world.rank == 0
    thread = threading.Thread(target=user) if speaks else None
    if speaks:
        thread.start()
    engine.run(told)
    if speaks:
        thread.join()
    stats = engine.stats()
    answers = {request.name: {"ids": [], "log_probs": [], "top": []} for request in requests}
    for event in events:
        if isinstance(event, EndEvent):
            answers[event.name]["end"] = [event.reason, event.new_tokens, event.cached_tokens]
        else:
            answers[event.name]["ids"].append(event.token)
            answers[event.name]["log_probs"].append(event.log_prob)
            answers[event.name]["top"].append([token for token, _ in event.top])
    alone = [generate(short, [request.prompt], request.config)[0].ids
             for request in (requests if generator.state.world.size == 1 else ())]
    return {"answers": answers, "preempted": stats.preempted, "cached": stats.cached_tokens, "used": stats.blocks_used,
            "alone": alone}


def everything(folder: str, flags: str, batch_size: int) -> dict | None:
    """What rank 0 gets, of everything, in the `folder` that tests/inference/tiny_job.py writes; benchmarks in batches of
    so many questions.
    """
    with patch.object(terminal, "HEARTBEAT", HEARTBEAT), patch.object(engines, "HEARTBEAT", HEARTBEAT):
        loaded = load(configs("inference", Path(folder), *flags.split()))
        found = generation(loaded) | {"benchmarks": benchmarks(Path(folder), flags.split(), batch_size),
                                      "served": served(loaded.generator())}
    return found if loaded.is_rank_0 else None


def recorded(tp: int, pp: int, prompts: int, beam_prompts: int, tokenizer: str) -> dict:
    """Answers and beams of the model of which Hugging Face's answers are recorded, and rank 0's answers over HTTP.

    The ids of that model are those of single bytes of the tokenizer, all ASCII.
    """
    generator = recorded_generator(tp, pp)
    return answers(generator, prompts) | {"http": over_http(generator, load_tokenizer(tokenizer), prompts)} | {
        name: beams(generator, name, beam_prompts)[0] for name in ("beams", "penalized_beams")}


def over_http(generator: Generator, tokenizer: Tokenizer, prompts: int) -> dict:
    """Texts of the greedy answers to so many recorded prompts, asked at once; then one of a second turn, for which the
    answer before it has been read again, with the number of tokens that were known and the text that is right. Rank 0
    has all this, the others the last.
    """
    how, engine = config("greedy"), Engine(generator, EngineLimits(4096))
    tokenizer.stop_ids = list(how.stop_ids)
    second, found = [*rows("prompts")[1], *rows("greedy")[1], 7, 8], {"answers": {}}

    def talk(url: str) -> None:
        with openai.OpenAI(base_url=url + "/v1", api_key="-", max_retries=0) as client:
            def ask(prompt: list[int], tokens: int) -> Completion:
                return client.completions.create(model="recorded", prompt=prompt, max_tokens=tokens, temperature=0)

            def ask_recorded(number: int) -> None:
                found["answers"][number] = ask(rows("prompts")[number], how.max_new_tokens).choices[0].text
            asking = [threading.Thread(target=ask_recorded, args=(number,)) for number in range(prompts)]
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join()
            until = time.monotonic() + 30
            while engine._scheduler.has_past and time.monotonic() < until:
                time.sleep(0.05)
            again = ask(second, 8)
            found["second"] = again.choices[0].text, again.usage.prompt_tokens_details.cached_tokens
        os.kill(os.getpid(), signal.SIGTERM)

    if generator.state.world.rank:
        engine.run(lambda events: None)
    else:
        listener = bind("127.0.0.1", 0)
        jobs, served = Jobs(tokenizer, None, "recorded", generator.max_length), Served("recorded", None)
        serve_beside(Server(engine, jobs, ServeConfig(drain_seconds=1), served, listener).run, talk,
                     listener.getsockname()[1])
    (right,) = generate(generator, [second], replace(how, max_new_tokens=8))
    return found | {"right": tokenizer.decode(right.ids)}
