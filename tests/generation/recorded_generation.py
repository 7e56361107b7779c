"""What Hugging Face's `generate` said (generation.npz, see tests/golden/make_generation.py), and the model it is of."""

import functools
import json
from pathlib import Path

import mindspore as ms
import numpy as np

from mindspeed_llm import kernels
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core import parallel_state
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.generation.beam_search import beam_search
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.engine import Engine, EngineLimits, Request, TokenEvent
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.runtime import device
from tests.golden.reference import Golden

LONGEST = 128   # of a recorded prompt and its answer: 104
RECORD = Path(__file__).parent.parent / "golden" / "generation.npz"


@functools.cache
def record() -> dict[str, np.ndarray]:
    """The recorded arrays; ids end where -1 begins."""
    with np.load(RECORD, allow_pickle=False) as stored:
        return dict(stored)


def rows(name: str) -> list[list[int]]:
    """The id rows of a recorded array, without their filling."""
    array = record()[name]
    return [row[row >= 0].tolist() for row in array.reshape(-1, array.shape[-1])]


def settings() -> list[dict]:
    """The recorded ways to sample."""
    return json.loads(str(record()["sampling"]))


@functools.cache
def recorded_generator(tp: int = 1, pp: int = 1) -> Generator:
    """This rank's generator over the recorded model."""
    device.setup()
    kernels.setup()
    golden = Golden()
    parallel = ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    state = parallel_state.build(golden.model, parallel)
    chunk = GPTModel(golden.model, parallel, state, ms.float32, trainable=False)
    for name, spec in chunk.parameters.specs.items():
        local = golden.local("weight", spec, state.tp.rank, state.tp.size)
        sharpened = name.startswith("decoder.layers") and local.ndim == 2
        chunk.parameters.load(name, local * np.float32(record()["sharpened"] if sharpened else 1))
    return Generator([chunk], golden.model.padded_vocab_size, LONGEST)


def config(name: str) -> GenerationConfig:
    """How the recorded answers `name` were generated."""
    penalty = float(record()["penalty"]) if name.startswith("penalized") else 1.0
    beams = name.endswith("beams")
    return GenerationConfig(record()[name].shape[-1], frozenset(record()["stop"].tolist()),
                            num_beams=record()[name].shape[1] if beams else 1, repetition_penalty=penalty)


def answers(generator: Generator, count: int) -> dict[str, list[list[int]]]:
    """What an engine answers to the first `count` prompts, greedily with and without penalty, all under way together.

    As Hugging Face gives them, with the stop token.
    """
    engine = Engine(generator, EngineLimits(4096, max_sequences=2 * count))
    if generator.state.world.rank == 0:
        for name in ("greedy", "penalized"):
            for number, prompt in enumerate(rows("prompts")[:count]):
                engine.submit(Request(f"{name} {number}", tuple(prompt), config(name)))
        engine.drain()
    found = {f"{name} {number}": [] for name in ("greedy", "penalized") for number in range(count)}

    def told(events: list) -> None:
        for event in events:
            if isinstance(event, TokenEvent):
                found[event.name].append(event.token)
            elif event.reason == "stop":
                found[event.name] += record()["stop"].tolist()

    engine.run(told)
    return {name: [found[f"{name} {number}"] for number in range(count)] for name in ("greedy", "penalized")}


def beams(generator: Generator, name: str, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """Beams of the first `count` prompts one after another, with their stop tokens, and the scores of each prompt's."""
    ids, scores = [], []
    for prompt in rows("prompts")[:count]:
        found = beam_search(generator, prompt, config(name))
        ids += [[*beam.ids, *(record()["stop"].tolist() if beam.reason == "stop" else ())] for beam in found]
        scores.append([beam.score for beam in found])
    return ids, scores
