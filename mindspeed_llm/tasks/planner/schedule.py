"""Pipeline schedules on paper: how many micro-batches are in flight, and how long ranks wait.

Method: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", 2021,
section 2.2. The orders are those of core/pipeline_parallel (a test holds them against each other); this module runs
without the framework.
"""

from collections import Counter
from collections.abc import Iterator


def bubble_fraction(stages: int, chunks: int, microbatches: int) -> float:
    """Idle part of a step's time when all chunks cost the same: (p - 1) / (v m + p - 1), v = 1 for plain 1F1B."""
    return (stages - 1) / (chunks * microbatches + stages - 1)


def events(rank: int, stages: int, chunks: int, microbatches: int) -> Iterator[tuple[bool, int]]:
    """What a pipeline rank does in a step, in order: (forward?, chunk)."""
    padded = -(-microbatches // stages) * stages if chunks > 1 else microbatches
    width = stages if chunks > 1 else padded
    rounds = [range(start, start + width) for start in range(0, padded, width)]
    forwards = [(chunk, number) for numbers in rounds for chunk in range(chunks) for number in numbers]
    backwards = [(chunk, number) for numbers in rounds for chunk in reversed(range(chunks)) for number in numbers]
    distance = stages - rank - 1
    warmup = min(distance if chunks == 1 else 2 * distance + (chunks - 1) * stages, len(forwards))
    order = [(True, *task) for task in forwards[:warmup]]
    for forward, backward in zip(forwards[warmup:], backwards, strict=False):
        order += [(True, *forward), (False, *backward)]
    order += [(False, *task) for task in backwards[len(forwards) - warmup:]]
    return ((is_forward, chunk) for is_forward, chunk, number in order if number < microbatches)


def backward_moments(rank: int, stages: int, chunks: int, microbatches: int) -> set[tuple[int, tuple[int, ...]]]:
    """The different moments at which a backward pass starts: (its chunk, micro-batches in flight of every chunk).

    The one that goes backward counts as in flight.
    """
    flying, moments = Counter(), set()
    for is_forward, chunk in events(rank, stages, chunks, microbatches):
        if is_forward:
            flying[chunk] += 1
        else:
            moments.add((chunk, tuple(flying[index] for index in range(chunks))))
            flying[chunk] -= 1
    return moments


def most_in_flight(rank: int, stages: int, chunks: int, microbatches: int) -> int:
    """Largest number of forward passes (of any chunk) that wait for their backward passes at one time."""
    return max(sum(counts) for _, counts in backward_moments(rank, stages, chunks, microbatches))
