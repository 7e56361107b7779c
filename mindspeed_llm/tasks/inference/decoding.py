"""The loop of greedy search and sampling: one token a step for every sequence that has not ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mindspeed_llm.tasks.inference.choosing import Chooser
from mindspeed_llm.tasks.inference.generator import Generator
from mindspeed_llm.tasks.inference.kv_cache import KVCache
from mindspeed_llm.tasks.inference.vocab_shard import VocabShard

OnToken = Callable[[int, int], None]
"""Called with (number of the prompt, new id) for every token of an answer."""


@dataclass
class Answer:
    """Generated ids without the stop token, and why they end: `stop`, `length` (--max-new-tokens) or `positions`."""

    ids: list[int] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class Limits:
    """`max_new_tokens` a sequence; a token of `stop_ids` ends it."""

    max_new_tokens: int
    stop_ids: frozenset[int]


def generate(generator: Generator, prompts: list[Sequence[int]], choose: Chooser, limits: Limits,
             on_token: OnToken | None = None) -> list[Answer]:
    """Answer `prompts` (token ids, of any lengths). Same result on every rank. Raises as `Generator.prefill`."""
    caches, logits = generator.prefill(prompts)
    return continue_from(generator, caches, logits, choose, limits, on_token)


def continue_from(generator: Generator, caches: list[KVCache], logits: VocabShard | None, choose: Chooser,
                  limits: Limits, on_token: OnToken | None = None) -> list[Answer]:
    """Go on from sequences in `caches` whose last tokens gave `logits` (None but on the last stage).

    Afterwards each cache holds its sequence but for the last token of the answer.
    """
    answers = [Answer() for _ in caches]
    running = list(range(len(caches)))
    while running:
        chosen = generator.agree(None if logits is None else choose(logits, running), (len(running),))
        still = []
        for number, token in zip(running, chosen.tolist(), strict=True):
            answer = answers[number]
            if token in limits.stop_ids:
                answer.reason = "stop"
                continue
            answer.ids.append(token)
            if on_token is not None:
                on_token(number, token)
            if len(answer.ids) >= limits.max_new_tokens:
                answer.reason = "length"
            elif caches[number].length + 1 >= generator.max_length:
                answer.reason = "positions"
            else:
                still.append(number)
        running = still
        if running:
            logits = generator.decode([caches[number] for number in running], [answers[n].ids[-1] for n in running])
    return answers
