"""Pipeline schedules: in which order a rank takes the micro-batches through its stages, and when results travel.

Method: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", 2021,
section 2.2: one forward, one backward (1F1B), and its interleaved form, where every rank holds several model chunks, so
that the bubble shrinks by their number. Chunk c of rank p is stage c * P + p of P * V.

Everything follows from the sizes alone, so that every rank knows what all others do. `plans` plays all orders through
on one clock and lets a result travel in the round in which it is made. Both ends of a message see it in the same round,
and a round needs nothing but earlier rounds: so no rank waits for ever, even where a send ends only when its receive
has been posted and messages of a rank pass one batch after the other. A rank makes at most one result at a time, so
that no round has two messages from one rank to another.
"""

from dataclasses import dataclass
from functools import lru_cache

_FORWARD, _BACKWARD = 1, 2  # clock ticks that a pass takes
TICKS = _FORWARD + _BACKWARD


@dataclass(frozen=True)
class Task:
    """One pass of one micro-batch through one of the model's stages."""

    forward: bool
    stage: int
    microbatch: int

    def consumer(self, stages: int) -> "Task | None":
        """The task on the neighbouring stage that needs this one's result, or None at the ends."""
        return self._neighbour(1 if self.forward else -1, stages)

    def producer(self, stages: int) -> "Task | None":
        """The task on the neighbouring stage whose result this one needs, or None at the ends."""
        return self._neighbour(-1 if self.forward else 1, stages)

    def _neighbour(self, step: int, stages: int) -> "Task | None":
        stage = self.stage + step
        return Task(self.forward, stage, self.microbatch) if 0 <= stage < stages else None


@dataclass(frozen=True)
class Round:
    """The messages of one rank that travel together, when the rank has done what ends by `clock`.

    sent: the task whose result leaves, or None. arriving: the tasks of this rank whose inputs come.
    """

    clock: int
    sent: Task | None
    arriving: tuple[Task, ...]


@dataclass(frozen=True)
class Plan:
    """What a rank does: (clock at its end, task) and its rounds, both in order."""

    tasks: tuple[tuple[int, Task], ...]
    rounds: tuple[Round, ...]


def order_of_tasks(rank: int, ranks: int, chunks: int, microbatches: int) -> list[Task]:
    """Everything that a rank does, in order: warm-up forwards, then one forward and one backward in turn, then
    backwards.

    Micro-batches enter in rounds of P. Where the last round is smaller, its missing micro-batches keep their places but
    do nothing: leaving tasks out of an order in which no rank waits for ever leaves such an order.
    """
    padded = -(-microbatches // ranks) * ranks
    entering = [range(start, start + ranks) for start in range(0, padded, ranks)]
    forwards = [Task(True, chunk * ranks + rank, number)
                for numbers in entering for chunk in range(chunks) for number in numbers]
    backwards = [Task(False, chunk * ranks + rank, number)
                 for numbers in entering for chunk in reversed(range(chunks)) for number in numbers]
    # With several chunks twice the distance to the last rank, as after a chunk's forward its gradient comes back
    # through all of them; with one, at most the distance plus one micro-batches are in flight.
    distance = ranks - rank - 1
    warmup = min(distance if chunks == 1 else distance * 2 + (chunks - 1) * ranks, len(forwards))
    tasks = forwards[:warmup]
    for done, forward in enumerate(forwards[warmup:]):
        tasks += [forward, backwards[done]]
    tasks += backwards[len(forwards) - warmup:]
    return [task for task in tasks if task.microbatch < microbatches]


@lru_cache(maxsize=32)
def plans(ranks: int, chunks: int, microbatches: int, training: bool) -> tuple[Plan, ...]:
    """The plan of every rank; without `training` its forward passes only."""
    stages = ranks * chunks
    orders = [[task for task in order_of_tasks(rank, ranks, chunks, microbatches) if training or task.forward]
              for rank in range(ranks)]
    clocks = _clocks(orders, stages)
    sent, arriving = [{} for _ in orders], [{} for _ in orders]
    for rank, order in enumerate(orders):
        for task in order:
            consumer = task.consumer(stages)
            if consumer is not None:
                sent[rank][clocks[task]] = task
                arriving[consumer.stage % ranks].setdefault(clocks[task], []).append(consumer)
    return tuple(Plan(tuple((clocks[task], task) for task in order),
                      tuple(Round(clock, sent[rank].get(clock), tuple(arriving[rank].get(clock, ())))
                            for clock in sorted(sent[rank].keys() | arriving[rank].keys())))
                 for rank, order in enumerate(orders))


def _clocks(orders: list[list[Task]], stages: int) -> dict[Task, int]:
    """When every task ends, if each starts as soon as its rank is free and its input has been made."""
    clocks: dict[Task, int] = {}
    waiting = [list(reversed(order)) for order in orders]
    free_at = [0] * len(orders)
    while any(waiting):
        before = len(clocks)
        for rank, tasks in enumerate(waiting):
            while tasks:
                source = tasks[-1].producer(stages)
                if source is not None and source not in clocks:
                    break
                task = tasks.pop()
                start = max(free_at[rank], clocks.get(source, 0))
                free_at[rank] = clocks[task] = start + (_FORWARD if task.forward else _BACKWARD)
        if len(clocks) == before:
            raise RuntimeError(f"a pipeline order waits for ever: {[tasks[-1] for tasks in waiting if tasks]}")
    return clocks
