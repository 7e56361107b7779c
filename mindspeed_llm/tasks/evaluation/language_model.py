"""What an evaluation asks of a model, and the model that answers: how likely are these continuations, what comes
next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from mindspore import Tensor

from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import continue_from
from mindspeed_llm.generation.generator import Generator, Pass, rows_as_numpy
from mindspeed_llm.generation.kv_cache import KVCache, SharedPrefix
from mindspeed_llm.generation.sampling import greedy
from mindspeed_llm.generation.vocab_shard import VocabShard
from mindspeed_llm.runtime.collectives import all_gather, all_reduce
from mindspeed_llm.runtime.memory import from_numpy
from mindspeed_llm.tasks.evaluation.prefixes import Group, shared_prefixes

UNDER_WAY = 8  # passes for which common beginnings are computed ahead: bounds the caches in memory
LOOK = 16      # tokens that are generated between two looks at the text


@dataclass(frozen=True)
class Request:
    """Token ids, at least one, and continuations of at least one token, to be rated after them."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Likelihoods:
    """Of each continuation: its log-probability (natural, summed over its tokens, fp64), and whether each of its tokens
    is the likeliest one where it stands.
    """

    log_probs: np.ndarray
    greedy: np.ndarray


class LanguageModel(Protocol):
    """The two questions of an evaluation."""

    def log_likelihoods(self, requests: Sequence[Request]) -> list[Likelihoods]:
        """How likely each request's continuations are."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: frozenset[int],
                 ended: Callable[[list[int]], bool]) -> list[list[int]]:
        """The likeliest tokens after each prompt, one after the other, without the stop token.

        An answer ends with a stop token, at `max_new_tokens`, or soon after `ended` says so of its ids.
        """


@dataclass(frozen=True)
class _Sequence:
    """Token ids of which the last `len(targets)` positions are rated: `targets[i]` are ids that may follow there."""

    ids: Sequence[int]
    targets: list[list[int]]


class ParallelLanguageModel:
    """A `LanguageModel` over tensor-, pipeline- and data-parallel ranks; all pass the same arguments and get all
    answers.

    What sequences begin with in common is computed once and its keys and values are shared, however the requests are
    ordered (`prefixes.shared_prefixes` finds it). The rest runs in passes of `batch_size` sequences, joined without
    padding, longest last; with several stages, several passes are under way. Only rated positions reach the output
    layer, and of their logits only the asked ones and the normalizer are exchanged. Data-parallel replicas take every
    n-th request.
    """

    def __init__(self, generator: Generator, batch_size: int) -> None:
        self._generator, self._batch_size = generator, batch_size

    def log_likelihoods(self, requests: Sequence[Request]) -> list[Likelihoods]:
        """See `LanguageModel`. Ids and continuation together may have `generator.max_length` + 1 tokens."""
        sequences = [_sequences(request) for request in requests]
        dealt = self._deal([sum(len(sequence.ids) for sequence in parts) for parts in sequences])
        mine = dealt[self._generator.state.dp.rank]
        own = iter(self._rate([sequence for index in mine for sequence in sequences[index]]))
        found = [np.array(_fold(requests[index], [next(own) for _ in sequences[index]])) for index in mine]
        bits = np.concatenate([np.zeros(0), *(values.ravel() for values in found)]).view(np.int32)
        results: list[Likelihoods | None] = [None] * len(requests)
        for places, values in zip(dealt, self._exchange(bits), strict=True):
            values, start = values.view(np.float64), 0
            for index in places:
                count = len(requests[index].continuations)
                log_probs, likeliest = values[start:start + 2 * count].reshape(2, count)
                results[index] = Likelihoods(log_probs, likeliest.astype(bool))
                start += 2 * count
        return results

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: frozenset[int],
                 ended: Callable[[list[int]], bool]) -> list[list[int]]:
        """See `LanguageModel`. Raises PromptLengthError for a prompt that is empty or leaves no room."""
        for prompt in prompts:
            self._generator.check_length(prompt)
        dealt = self._deal(list(map(len, prompts)))
        mine, answers = dealt[self._generator.state.dp.rank], []
        for start in range(0, len(mine), self._batch_size):
            batch = [prompts[index] for index in mine[start:start + self._batch_size]]
            answers += self._write(batch, max_new_tokens, stop_ids, ended)
        bits = np.array([entry for ids in answers for entry in (len(ids), *ids)], np.int32)
        results: list[list[int]] = [[] for _ in prompts]
        for places, values in zip(dealt, self._exchange(bits), strict=True):
            values = values.tolist()
            start = 0
            for index in places:
                end = start + 1 + values[start]
                results[index], start = values[start + 1:end], end
        return results

    def _deal(self, sizes: list[int]) -> list[list[int]]:
        """Which replica takes which requests: one each in turn, by size."""
        order, size = sorted(range(len(sizes)), key=sizes.__getitem__), self._generator.state.dp.size
        return [order[replica::size] for replica in range(size)]

    def _exchange(self, bits: np.ndarray) -> list[np.ndarray]:
        """The int32 `bits` of every replica, of any lengths."""
        dp = self._generator.state.dp
        if dp.size == 1:
            return [bits]
        lengths = all_gather(from_numpy(np.array([len(bits)], np.int32)), dp).asnumpy()
        padded = np.zeros((1, max(1, lengths.max())), np.int32)
        padded[0, :len(bits)] = bits
        gathered = all_gather(from_numpy(padded), dp).asnumpy()
        return [row[:length].copy() for row, length in zip(gathered, lengths, strict=True)]

    def _rate(self, sequences: list[_Sequence]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each sequence: log-probabilities of its targets, fp64 `(positions, targets)`, and the likeliest ids
        there.
        """
        results: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(sequences)
        groups = shared_prefixes([sequence.ids for sequence in sequences],
                                 [len(sequence.ids) - len(sequence.targets) for sequence in sequences])
        while groups:
            block: list[Group] = []
            while groups and sum(len(group.members) for group in block) < UNDER_WAY * self._batch_size:
                block.append(groups.pop())
            self._rate_block(block, sequences, results)
        return results

    def _rate_block(self, block: list[Group], sequences: list[_Sequence],
                    results: list[tuple[np.ndarray, np.ndarray] | None]) -> None:
        shared = self._prefix_caches(block, [sequence.ids for sequence in sequences])
        length = {member: group.length for group in block for member in group.members}
        order = sorted(length, key=lambda member: len(sequences[member].ids) - length[member])
        batches = [order[start:start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        passes = [Pass([SharedPrefix(shared[member]) for member in batch], [length[member] for member in batch],
                       [sequences[member].ids[length[member]:] for member in batch], list(range(len(batch))),
                       [len(sequences[member].targets) for member in batch]) for batch in batches]
        targets = [[row for member in batch for row in sequences[member].targets] for batch in batches]
        width = max(len(row) for batch in targets for row in batch)
        pending = iter(targets)
        found = self._generator.run(passes, lambda logits: self._look(logits, next(pending), width))
        bits = self._generator.from_last_stage(found, (sum(map(len, targets)), width + 2)).copy()
        values, start = bits.view(np.float32).astype(np.float64), 0
        for member in order:
            rows = slice(start, start + len(sequences[member].targets))
            start = rows.stop
            results[member] = (values[rows, :width] - values[rows, width:width + 1], bits[rows, width + 1])

    def _prefix_caches(self, groups: list[Group], sequences: Sequence[Sequence[int]]) -> dict[int, KVCache]:
        """A cache for each member, with what its group has in common."""
        none = self._generator.new_cache()
        caches = [self._generator.new_cache() if group.length else none for group in groups]
        fresh = [(cache, sequences[group.members[0]][:group.length])
                 for cache, group in zip(caches, groups, strict=True) if group.length]
        if fresh:
            self._generator.extend([cache for cache, _ in fresh], [ids for _, ids in fresh])
        return {member: cache for cache, group in zip(caches, groups, strict=True) for member in group.members}

    def _look(self, logits: Tensor, targets: list[list[int]], width: int) -> np.ndarray:
        """Of this rank's shard `(rows, 1, V/T)` and the others': the targets' logits, their normalizer and the
        likeliest id of each row, as bits `(rows, width + 2)`. All rows of the embedding count, those that pad it too,
        as in the training loss and in Hugging Face's models.
        """
        tp = self._generator.state.tp
        shard = VocabShard(rows_as_numpy(logits), self._generator.chunks[0].model.padded_vocab_size, tp)
        padded = np.array([row + row[:1] * (width - len(row)) for row in targets], np.int64)
        places = padded - tp.rank * shard.logits.shape[1]
        here = (0 <= places) & (places < shard.logits.shape[1])
        picked = np.where(here, np.take_along_axis(shard.logits, np.where(here, places, 0), 1), np.float32(0))
        if tp.size > 1:  # all ranks but one add zero: the sum is exact
            picked = all_reduce(from_numpy(picked), tp).asnumpy()
        return np.concatenate((picked.view(np.int32), shard.log_normalizers().view(np.int32)[:, None],
                               shard.top(1)[1]), axis=1)

    def _write(self, prompts: list[Sequence[int]], max_new_tokens: int, stop_ids: frozenset[int],
               ended: Callable[[list[int]], bool]) -> list[list[int]]:
        groups = shared_prefixes(prompts, [len(prompt) - 1 for prompt in prompts])
        shared = self._prefix_caches(groups, prompts)
        caches = [shared[number].fork() for number in range(len(prompts))]
        logits = self._generator.extend(caches, [prompt[cache.length:]
                                                 for prompt, cache in zip(prompts, caches, strict=True)])
        answers: list[list[int]] = [[] for _ in prompts]
        running, done = list(range(len(prompts))), 0
        while True:
            config = GenerationConfig(min(LOOK, max_new_tokens - done), stop_ids)
            pieces = continue_from(self._generator, [caches[number] for number in running],
                                   [[*prompts[number], *answers[number]] for number in running], logits, greedy, config)
            done += config.max_new_tokens
            for number, piece in zip(running, pieces, strict=True):
                answers[number] += piece.ids
            running = [number for number, piece in zip(running, pieces, strict=True)
                       if piece.reason == "length" and done < max_new_tokens and not ended(answers[number])]
            if not running:
                return answers
            logits = self._generator.decode([caches[number] for number in running],
                                            [answers[number][-1] for number in running])


def _sequences(request: Request) -> list[_Sequence]:
    """The sequences that rate a request: one for all continuations of one token, one for each longer one."""
    single = [ids[0] for ids in request.continuations if len(ids) == 1]
    longer = [ids for ids in request.continuations if len(ids) > 1]
    return ([_Sequence(request.context, [single])] if single else []) + [
        _Sequence([*request.context, *ids[:-1]], [[token] for token in ids]) for ids in longer]


def _fold(request: Request, rated: list[tuple[np.ndarray, np.ndarray]]) -> tuple[list[float], list[bool]]:
    """(log-probabilities, whether greedy) of a request's continuations out of those of its `_sequences`."""
    log_probs, likeliest, rated, place = [], [], list(rated), 0
    singles = rated.pop(0) if any(len(ids) == 1 for ids in request.continuations) else None
    for ids in request.continuations:
        if len(ids) == 1:
            log_probs.append(singles[0][0, place])
            likeliest.append(singles[1][0] == ids[0])
            place += 1
        else:
            values, best = rated.pop(0)
            log_probs.append(values[:, 0].sum())
            likeliest.append(bool((best == np.array(ids)).all()))
    return log_probs, likeliest
