"""The loop of greedy search and sampling: one token a step for every sequence that has not ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.generation.kv_cache import KVCache
from mindspeed_llm.generation.sampling import Sampler, sampler
from mindspeed_llm.generation.vocab_shard import VocabShard

OnToken = Callable[[int, int], None]
"""Called with (number of the prompt, new id) for every token of an answer."""


@dataclass
class Answer:
    """Generated ids without the stop token, and why they end: `stop`, `length` (--max-new-tokens) or `positions`."""

    ids: list[int] = field(default_factory=list)
    reason: str = ""


def generate(generator: Generator, prompts: list[Sequence[int]], config: GenerationConfig,
             on_token: OnToken | None = None) -> list[Answer]:
    """Answer `prompts` (token ids, of any lengths). Same result on every rank. Raises as `Generator.prefill`."""
    caches, logits = generator.prefill(prompts)
    return continue_from(generator, caches, prompts, logits, sampler(config), config, on_token)


def continue_from(generator: Generator, caches: list[KVCache], prompts: list[Sequence[int]], logits: VocabShard | None,
                  sample: Sampler, config: GenerationConfig, on_token: OnToken | None = None) -> list[Answer]:
    """Go on from `prompts`, which are in `caches` and whose last tokens gave `logits` (None but on the last stage).

    `sample` is one that `config` describes; who passes the same one again goes on with its random streams. Afterwards
    each cache holds its sequence but for the last token of the answer.
    """
    answers = [Answer() for _ in caches]
    running = list(range(len(caches)))
    while running:
        chosen = None
        if logits is not None:
            sequences = [[*prompts[number], *answers[number].ids] for number in running]
            chosen = sample(logits.penalized(sequences, config.repetition_penalty), running)
        chosen = generator.from_last_stage(chosen, (len(running),))
        still = []
        for number, token in zip(running, chosen.tolist(), strict=True):
            answer = answers[number]
            if token in config.stop_ids:
                answer.reason = "stop"
                continue
            answer.ids.append(token)
            if on_token is not None:
                on_token(number, token)
            if len(answer.ids) >= config.max_new_tokens:
                answer.reason = "length"
            elif caches[number].length + 1 >= generator.max_length:
                answer.reason = "positions"
            else:
                still.append(number)
        running = still
        if running:
            logits = generator.decode([caches[number] for number in running], [answers[n].ids[-1] for n in running])
    return answers
