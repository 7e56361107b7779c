"""The loop of greedy search and sampling: one token a step for every sequence that has not ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.generation.kv_cache import KVCache
from mindspeed_llm.generation.sampling import Sampler, sampler
from mindspeed_llm.generation.vocab_shard import VocabShard

OnToken = Callable[[int, int], None]
"""Called with (number of the prompt, new id) for every token of an answer."""


@dataclass
class Answer:
    """Generated ids without the stop token, and why they end: `stop`, `length` (--max-new-tokens) or `positions`.

    log_probs: of each id as the model gives them, before temperature and penalty, where they were asked for.
    """

    ids: list[int] = field(default_factory=list)
    reason: str = ""
    log_probs: list[float] = field(default_factory=list)

    def take(self, token: int, config: GenerationConfig, *, full: bool) -> None:
        """Add a chosen token, or see that the answer ends. full: the sequence may have no more tokens than this one."""
        if token in config.stop_ids:
            self.reason = "stop"
            return
        self.ids.append(token)
        if len(self.ids) >= config.max_new_tokens:
            self.reason = "length"
        elif full:
            self.reason = "positions"


def generate(generator: Generator, prompts: list[Sequence[int]], config: GenerationConfig,
             on_token: OnToken | None = None, first: int = 0) -> list[Answer]:
    """Answer `prompts` (token ids, of any lengths). Same result on every rank. Raises as `Generator.prefill`.

    `first` is the number of the first one, for the random streams: prompts may come in several calls.
    """
    sample = sampler(config)
    caches, logits = generator.prefill(prompts)
    return continue_from(generator, caches, prompts, logits,
                         lambda shard, numbers: sample(shard, [first + number for number in numbers]), config, on_token)


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
            chosen = [sample(logits.penalized(sequences, [config.repetition_penalty] * len(running)), running)]
            if config.log_probs:
                chosen.append(logits.log_probs_of(chosen[0]).view(np.int32))
            chosen = np.stack(chosen)
        chosen = generator.from_last_stage(chosen, (1 + config.log_probs, len(running)))
        log_probs = chosen[1:].copy().view(np.float32).T.tolist()  # a list of one, or none, for each row
        still = []
        for number, token, kept in zip(running, chosen[0].tolist(), log_probs, strict=True):
            answer = answers[number]
            answer.take(token, config, full=caches[number].length + 1 >= generator.max_length)
            if answer.reason == "stop":
                continue
            answer.log_probs += kept
            if on_token is not None:
                on_token(number, token)
            if not answer.reason:
                still.append(number)
        running = still
        if running:
            logits = generator.decode([caches[number] for number in running], [answers[n].ids[-1] for n in running])
    return answers
