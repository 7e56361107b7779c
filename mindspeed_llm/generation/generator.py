"""Running the model forward over sequences that have a past: prefill and decode, under tensor and pipeline parallelism.

New tokens of several sequences are joined along S with a batch of one, `(S, 1, ...)`: rotary angles are per position
anyway, and attention is told where each sequence's rows and its cache are. So prompts of different lengths need no
padding, and a decode step of n sequences is one pass of n rows (Yu et al., "Orca", OSDI 2022).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from mindspore import Tensor, mint
from mindspore import dtype as mstype

from mindspeed_llm import kernels
from mindspeed_llm.checkpoint.dtypes import cast
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.pipeline_parallel.schedules import StageProgram, forward_only
from mindspeed_llm.core.transformer.layer import ForwardContext
from mindspeed_llm.generation.kv_cache import BlockPool, Cache, KVCache
from mindspeed_llm.generation.vocab_shard import VocabShard
from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.collectives import broadcast
from mindspeed_llm.runtime.memory import from_numpy

PASS_TOKENS = 4096  # a longer prompt goes through in pieces: bounds the memory of activations


class PromptLengthError(UserError):
    """An empty prompt, or one that leaves no room for an answer. Every rank raises it alike."""


@dataclass(frozen=True)
class Pass:
    """One forward pass: `ids[i]` are new tokens of the sequence with the past `caches[i]`, all of one kind.

    `lengths[i]`: tokens before them; more than the cache has, where an earlier pass of the same run brings these.
    `wanted`: those i whose last new position's logits are asked for; with `tails`, those of as many last new positions
    as it has at the same place.
    """

    caches: list[Cache]
    lengths: list[int]
    ids: list[Sequence[int]]
    wanted: list[int]
    tails: list[int] | None = None

    @property
    def tokens(self) -> int:
        """Number of new tokens."""
        return sum(len(ids) for ids in self.ids)


class Generator:
    """This rank's chunks of a model, in the order of their layers, run over sequences with caches.

    They may be those of a training run, under any parallel sizes: their tensors are used as they are at each pass. All
    ranks of a model replica call the same methods with the same arguments; ranks of one context-parallel group all do
    the whole work. `vocab_size` is the tokenizer's: higher ids are padding and never chosen. `max_length` is the
    longest sequence in tokens, prompt and answer together.
    """

    def __init__(self, chunks: list[GPTModel], vocab_size: int, max_length: int) -> None:
        self.chunks = [_for_single_tokens(chunk, number) for number, chunk in enumerate(chunks)]
        self.state = self.chunks[0].state
        self.vocab_size, self.max_length = vocab_size, max_length
        self._pool = BlockPool()
        self._scale = 1 / math.sqrt(chunks[0].model.kv_channels)

    def new_cache(self) -> KVCache:
        """The cache of a sequence without tokens."""
        return KVCache(self._pool)

    def prefill(self, prompts: list[Sequence[int]]) -> tuple[list[KVCache], VocabShard | None]:
        """New caches holding `prompts` (token ids, of any lengths), and the logits after each prompt's last token.

        The logits (rows in the order of the prompts) are on the last stage; None elsewhere. Raises as `check_length`.
        """
        for prompt in prompts:
            self.check_length(prompt)
        caches = [self.new_cache() for _ in prompts]
        return caches, self.extend(caches, prompts)

    def check_length(self, prompt: Sequence[int]) -> None:
        """Raise PromptLengthError for an empty prompt or one that leaves no room for an answer."""
        if not prompt:
            raise PromptLengthError("the prompt is empty: give at least one token")
        if len(prompt) >= self.max_length:
            raise PromptLengthError(f"the prompt has {len(prompt)} tokens, but a sequence may have {self.max_length}, "
                                    "answer included: shorten it, or raise --seq-length (at most "
                                    "--max-position-embeddings)")

    def decode(self, caches: list[KVCache], ids: Sequence[int]) -> VocabShard | None:
        """Append one token to each sequence; the logits after it, as `prefill` gives them."""
        return self.extend(caches, [[int(token)] for token in ids])

    def extend(self, caches: list[KVCache], ids: list[Sequence[int]]) -> VocabShard | None:
        """Append any number of tokens to each sequence; the logits after each one's last token."""
        return self.logits(plan_passes(caches, ids, PASS_TOKENS))

    def logits(self, passes: list[Pass]) -> VocabShard | None:
        """Run passes; their wanted logits, in order, on the last stage; None elsewhere, or when none were wanted."""
        logits = self.run(passes, rows_as_numpy)
        return None if logits is None else VocabShard(logits, self.vocab_size, self.state.tp)

    def run(self, passes: list[Pass], head: Callable[[Tensor], np.ndarray]) -> np.ndarray | None:
        """Run passes one after the other through the stages, several under way at once where there are several stages.

        `head`, called in the order of the passes, turns this rank's shard of a pass's wanted logits, `(rows, 1, V/T)`,
        into an array with a first axis of rows. Returns these joined, on the last stage; None elsewhere, or when no
        logits were wanted.
        """
        results: list[np.ndarray] = []

        def program(chunk: GPTModel) -> StageProgram:
            def forward(number: int, received: Tensor | None) -> Tensor:
                this = passes[number]
                hidden = chunk.hidden_states(_token_column(this) if chunk.first else received,
                                             self._context(this, chunk))
                if chunk.last and this.wanted:
                    results.append(head(chunk.logits(_last_rows(hidden, this))))
                return hidden

            return StageProgram(forward, lambda number: (passes[number].tokens, 1, chunk.model.hidden_size),
                                chunk.parameters.dtype)

        for this in passes:
            for cache, length, ids in zip(this.caches, this.lengths, this.ids, strict=True):
                cache.reserve(length + len(ids))
        with autograd.no_grad():
            forward_only([program(chunk) for chunk in self.chunks], len(passes), self.state.pp)
        for this in passes:
            for cache, ids in zip(this.caches, this.ids, strict=True):
                cache.advance(len(ids))
        return np.concatenate(results) if results else None

    def from_last_stage(self, values: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
        """The last stage's int32 or fp32 `values` of `shape` on every stage, as int32 bits."""
        pp = self.state.pp
        bits = np.zeros(shape, np.int32) if values is None else np.ascontiguousarray(values).view(np.int32)
        return bits if pp.size == 1 else broadcast(from_numpy(bits), pp, pp.size - 1).asnumpy()

    def _context(self, this: Pass, chunk: GPTModel) -> ForwardContext:
        counts = [len(ids) for ids in this.ids]
        positions = np.concatenate([np.arange(length, length + count)
                                    for length, count in zip(this.lengths, counts, strict=True)])
        cos, sin = chunk.rotary(positions)
        edges, pool, keep = np.cumsum([0, *counts]).tolist(), this.caches[0].pool, this.caches[0].keeps
        tables = [cache.table for cache in this.caches]

        def cached_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = pool.slabs(layer, k)
            return kernels.primitives().attention_cached(q, k, v, keys, values, tables, edges, this.lengths,
                                                         self._scale, keep)

        return ForwardContext(cos, sin, cached_attention)


def _for_single_tokens(chunk: GPTModel, number: int) -> GPTModel:
    """The rank's chunk of that number over the same tensors, without what training adds and generation has no use for:
    sequence parallelism (a step of one token cannot be cut) and recomputation.
    """
    parallel = replace(chunk.parallel, sequence_parallel=False, recompute_granularity=None)
    state = replace(chunk.state, sequence_parallel=False)
    return GPTModel(chunk.model, parallel, state, chunk.parameters.dtype, number, lora=chunk.lora,
                    parameters=chunk.parameters)


def plan_passes(caches: Sequence[Cache], ids: Sequence[Sequence[int]], limit: int) -> list[Pass]:
    """Split new tokens into passes of at most `limit` tokens: sequences share a pass, a longer one is cut in pieces."""
    passes: list[Pass] = []
    room = 0
    for cache, tokens in zip(caches, ids, strict=True):
        for start in range(0, len(tokens), limit):
            piece = tokens[start:start + limit]
            if len(piece) > room:
                passes.append(Pass([], [], [], []))
                room = limit
            current = passes[-1]
            if start + limit >= len(tokens):
                current.wanted.append(len(current.ids))
            current.caches.append(cache)
            current.lengths.append(cache.length + start)
            current.ids.append(piece)
            room -= len(piece)
            if start + limit < len(tokens):
                room = 0  # the next piece needs this one's keys in the cache
    return passes


def _token_column(this: Pass) -> Tensor:
    return from_numpy(np.concatenate([np.asarray(ids, np.int32) for ids in this.ids]).reshape(-1, 1))


def _last_rows(hidden: Tensor, this: Pass) -> Tensor:
    """Hidden states `(rows, 1, H)` of the wanted sequences' last positions."""
    ends = np.cumsum([len(ids) for ids in this.ids])[this.wanted].tolist()
    tails = this.tails if this.tails is not None else [1] * len(ends)
    if sum(tails) == hidden.shape[0]:
        return hidden
    rows = [hidden[end - tail:end] for end, tail in zip(ends, tails, strict=True)]
    return rows[0] if len(rows) == 1 else mint.cat(rows, dim=0)


def rows_as_numpy(logits: Tensor) -> np.ndarray:
    """fp32 `(rows, V/T)`. MindSpore's own cast of bf16 takes a millisecond on CPU, as long as a whole layer."""
    array = logits.asnumpy().reshape(logits.shape[0], -1)
    return cast(array.view(np.uint16), "bf16", "fp32") if logits.dtype == mstype.bfloat16 else array.astype(np.float32)
