"""Which sequences go forward in a step of the engine, and who has the memory.

Sequences join and leave between steps (Yu et al., "Orca", OSDI 2022). A step decodes one token of every sequence whose
prompt is through, and takes a bounded number of prompt tokens along (Agrawal et al., "Sarathi-Serve", OSDI 2024).
Full blocks of a prompt go through by themselves, several at a time: the kernels give their rows the same bits in passes
of any number of blocks, so that it does not matter who computed one, and sharing it changes nothing. For the same
reason what follows the last full block has a pass of its own, decoded tokens have passes of their own, of a size up to
which a row's bits do not depend on the others, and a sequence that lost its memory decodes its answer anew. Decoded
tokens' keys and values, which are summed in another order than a prompt's, are never shared. While nothing else is to
be done the tokens of past answers go through once more as a prompt, block by block, so that the next turn of a chat
finds them; their bits then are those that this turn would compute itself.

All ranks run the same scheduler over the same requests; nothing here depends on the clock.
"""

import hashlib
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import Answer
from mindspeed_llm.generation.generator import Pass
from mindspeed_llm.generation.kv_cache import BLOCK, BlockPool, KVCache
from mindspeed_llm.generation.sampling import random_stream

PAST_ANSWERS = 64   # whose tokens are kept in mind until there is time for them
DECODE_ROWS = 15  # of a pass: so many rows of a product have the same bits whatever is beside them (kernels/cpu)


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of an engine.

    cache_tokens: tokens whose keys and values are in memory, at least those of one longest sequence. max_sequences:
    that are generated at a time. step_tokens: decoded and prompt tokens of a step, at least one block of a prompt.
    block_tokens: size of the blocks in which memory is given out, prompts are processed and beginnings are shared.
    """

    cache_tokens: int
    max_sequences: int = 32
    step_tokens: int = 256
    block_tokens: int = BLOCK


@dataclass(eq=False)
class Sequence:
    """A request under way. `known`: prompt tokens that are in the cache after the passes planned so far; `cached`:
    those of them that shared blocks gave.
    """

    name: str
    prompt: tuple[int, ...]
    config: GenerationConfig
    pool: BlockPool
    answer: Answer = field(default_factory=Answer)

    def __post_init__(self) -> None:
        self.stream = random_stream(self.config.seed, 0)
        self.block_names = _names(self.prompt, self.pool.block_tokens)
        self.cache, self.known, self.cached = KVCache(self.pool), 0, 0

    def lose_memory(self) -> None:
        """Give all blocks back."""
        self.cache.truncate(0)
        self.known = self.cached = 0

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer.ids)

    @property
    def decodes(self) -> bool:
        """Whether the prompt is through."""
        return self.known == len(self.prompt)

    def adopt(self) -> bool:
        """Take the next block of the prompt from the pool, if it is there."""
        place = self.known // self.pool.block_tokens
        block = self.pool.find(self.block_names[place]) if place < len(self.block_names) else None
        if block is None:
            return False
        self.cache.adopt(place, block)
        self.known += self.pool.block_tokens
        self.cached += self.pool.block_tokens
        return True


@dataclass(frozen=True)
class _Past:
    """A sequence that has ended: the names of its full blocks, of which block `first` is the first that holds decoded
    tokens, and its ids from that block on, int32.
    """

    names: list[bytes]
    first: int
    ids: np.ndarray


@dataclass
class Step:
    """Passes to run, and the sequences whose logits they will give, in that order."""

    passes: list[Pass] = field(default_factory=list)
    asked: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Sequences that run, in the order of their arrival, and those that wait: first come, first served.

    A sequence begins when there are blocks for all that it has. When one that runs needs a block and none is left, the
    youngest gives its blocks up and waits, before the others that wait. As the memory is large enough for any single
    sequence, the oldest always goes on.
    """

    def __init__(self, limits: EngineLimits, max_length: int) -> None:
        bound = limits.cache_tokens // limits.block_tokens
        if bound * limits.block_tokens < max_length:
            raise UserError(f"memory for {limits.cache_tokens} tokens in blocks of {limits.block_tokens} is too small "
                            f"for a sequence of {max_length} tokens: give more, or lower --seq-length")
        self.pool = BlockPool(limits.block_tokens, bound)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.computed = self.found = self.reread = self.preempted = 0     # three times tokens, sequences
        self._past: deque[_Past] = deque(maxlen=PAST_ANSWERS)
        self._limits = limits

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.running or self.waiting)

    def add(self, name: str, prompt: tuple[int, ...], config: GenerationConfig) -> None:
        """A new sequence, which waits."""
        self.waiting.append(Sequence(name, prompt, config, self.pool))

    def remove(self, sequence: Sequence) -> None:
        """A sequence has ended; its blocks are free."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        sequence.lose_memory()
        ids, first = (*sequence.prompt, *sequence.answer.ids), len(sequence.block_names)
        # also of a block that ends with the answer
        names = _names((*ids, -1), self.pool.block_tokens, sequence.block_names)
        if len(names) > first:
            self._past.append(_Past(names, first, np.asarray(ids[first * self.pool.block_tokens:], np.int32)))

    def named(self, name: str) -> Sequence | None:
        """The sequence under way of that name."""
        return next((one for one in (*self.running, *self.waiting) if one.name == name), None)

    def plan(self) -> Step:
        """What to do next. There is something to do whenever the scheduler is busy."""
        step = Step()
        self._decode(step)
        self._admit()
        self._process_prompts(step, self._limits.step_tokens - sum(one.tokens for one in step.passes))
        return step

    @property
    def has_past(self) -> bool:
        """Whether there may be tokens of past answers to be put through as a prompt."""
        return bool(self._past)

    def plan_past(self) -> Step:
        """The next block of the latest answer that is not in memory as a prompt; nothing when there is none.

        To be called when the scheduler is not busy. It takes the memory of decoded tokens and nobody else's: without
        such, or with a prompt that is no longer in memory, an answer is given up. The block is free for others as soon
        as the step is forgotten.
        """
        size = self.pool.block_tokens
        while self._past:
            past, cache, place = self._past[-1], KVCache(self.pool), 0
            while place < len(past.names) and (block := self.pool.find(past.names[place])) is not None:
                cache.adopt(place, block)
                place += 1
            if past.first <= place < len(past.names) and self.pool.spare:
                cache.reserve((place + 1) * size)
                self.pool.name(cache.table[place], past.names[place])
                self.reread += size
                begin = (place - past.first) * size
                return Step([Pass([cache], [place * size], [past.ids[begin:begin + size]], [])])
            self._past.pop()
        return Step()

    def _decode(self, step: Step) -> None:
        ready: list[Sequence] = []
        for sequence in list(self.running):
            if sequence in self.running and sequence.decodes and self._has_room(sequence):
                ready.append(sequence)
        for start in range(0, len(ready), DECODE_ROWS):
            rows = ready[start:start + DECODE_ROWS]
            lengths = [sequence.cache.length for sequence in rows]
            ids = [sequence.answer.ids[length - len(sequence.prompt)]
                   for sequence, length in zip(rows, lengths, strict=True)]
            # in an answer that is decoded anew the next token is known
            wanted = [row for row, sequence in enumerate(rows) if lengths[row] + 1 == sequence.length]
            step.passes.append(Pass([sequence.cache for sequence in rows], lengths, [[token] for token in ids], wanted))
            step.asked += [rows[row] for row in wanted]

    def _has_room(self, sequence: Sequence) -> bool:
        """Give a sequence the block for its next token, if need be the youngest's; False: it lost its own."""
        while not self.pool.has(sequence.cache.missing(sequence.cache.length + 1)):
            youngest = self.running.pop()
            youngest.lose_memory()
            self.waiting.appendleft(youngest)
            self.preempted += 1
            if youngest is sequence:
                return False
        sequence.cache.reserve(sequence.cache.length + 1)
        return True

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._limits.max_sequences:
            first = self.waiting[0]
            while first.adopt():
                pass
            if not self.pool.has(first.cache.missing(first.length + 1)):
                first.lose_memory()
                return
            first.cache.reserve(first.length + 1)
            self.found += first.cached
            self.running.append(self.waiting.popleft())

    def _process_prompts(self, step: Step, room: int) -> None:
        size, processed = self.pool.block_tokens, 0
        for sequence in self.running:
            while not sequence.decodes and (room > 0 or not processed):
                if sequence.adopt():  # somebody computed it since this sequence began, or will do so in this step
                    self.found += size
                    continue
                start, stop = sequence.known, self._piece_end(sequence, room)
                piece = sequence.prompt[start:stop]
                sequence.known += len(piece)
                for place in range(start // size, min(sequence.known // size, len(sequence.block_names))):
                    self.pool.name(sequence.cache.table[place], sequence.block_names[place])
                last = sequence.decodes and not sequence.answer.ids
                step.passes.append(Pass([sequence.cache], [start], [piece], [0] if last else []))
                step.asked += [sequence] if last else []
                room -= len(piece)
                processed += len(piece)
        self.computed += processed

    def _piece_end(self, sequence: Sequence, room: int) -> int:
        """Where a pass over a prompt that goes on at `known` ends: with its full blocks that nobody knows, as many as
        there is room for and at least one; or with the prompt.
        """
        size, names = self.pool.block_tokens, sequence.block_names
        place = first = sequence.known // size
        while place < len(names) and (place == first or (
                (place + 1 - first) * size <= room and self.pool.find(names[place]) is None)):
            place += 1
        return place * size if place > first else len(sequence.prompt)


def _names(prompt: tuple[int, ...], size: int, first: list[bytes] | None = None) -> list[bytes]:
    """A name for each full block of the prompt before its last token, after all that is in it and before it.

    The `first` ones may be known. The last token is computed in any case, for the logits after it.
    """
    names = list(first or ())
    name = names[-1] if names else b""
    for start in range(len(names) * size, (len(prompt) - 1) // size * size, size):
        name = hashlib.sha256(name + np.asarray(prompt[start:start + size], np.int32).tobytes()).digest()
        names.append(name)
    return names
