"""The interleaved pipeline schedule: every rank holds several model chunks, so that the bubble shrinks by their number.

Method: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", 2021,
section 2.2. Chunk c of rank p is stage c * P + p of P * V. Micro-batches enter in rounds of P; a last, smaller round is
allowed.

What a rank does, and in which order it sends to each neighbour, follows from the sizes alone. Messages between two
ranks arrive in the order in which they were sent, so a receiver works out the sender's order and puts aside what comes
too early.
"""

from dataclasses import dataclass

from mindspore import Tensor

from mindspeed_llm.core.pipeline_parallel.stage import StageProgram
from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.collectives import Group, finish_exchange, start_exchange


@dataclass(frozen=True)
class Task:
    """One pass of one micro-batch through one of the model's stages."""

    forward: bool
    stage: int
    microbatch: int

    def consumer(self, stages: int) -> "Task | None":
        """The task on the neighbouring stage that needs this one's result, or None at the ends."""
        stage = self.stage + (1 if self.forward else -1)
        return Task(self.forward, stage, self.microbatch) if 0 <= stage < stages else None


def order_of_tasks(rank: int, ranks: int, chunks: int, microbatches: int) -> list[Task]:
    """Everything that a rank does, in order: warm-up forwards, then one forward and one backward in turn, then
    backwards.

    Where the last round is smaller, its missing micro-batches keep their places but do nothing: leaving tasks out of an
    order in which no rank waits for ever leaves such an order.
    """
    padded = -(-microbatches // ranks) * ranks
    rounds = [range(start, start + ranks) for start in range(0, padded, ranks)]
    forwards = [Task(True, chunk * ranks + rank, number)
                for numbers in rounds for chunk in range(chunks) for number in numbers]
    backwards = [Task(False, chunk * ranks + rank, number)
                 for numbers in rounds for chunk in reversed(range(chunks)) for number in numbers]
    # Twice the distance to the last rank, as after a chunk's forward its gradient comes back through all of them.
    warmup = min((ranks - rank - 1) * 2 + (chunks - 1) * ranks, len(forwards))
    tasks = forwards[:warmup]
    for done, forward in enumerate(forwards[warmup:]):
        tasks += [forward, backwards[done]]
    tasks += backwards[len(forwards) - warmup:]
    return [task for task in tasks if task.microbatch < microbatches]


def forward_backward_interleaved(programs: list[StageProgram], microbatches: int, pp: Group,
                                 loss_grad: Tensor) -> list[Tensor]:
    """As `forward_backward_1f1b`, for this rank's chunks in order."""
    ranks, stages = pp.size, pp.size * len(programs)
    mail = _Mail(programs, microbatches, pp)
    in_flight: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}
    losses: dict[int, Tensor] = {}
    for task in order_of_tasks(pp.rank, ranks, len(programs), microbatches):
        key = (task.stage, task.microbatch)
        last = task.stage == stages - 1
        if task.forward:
            leaf = autograd.leaf(mail.take(task)) if task.stage else None
            output = programs[task.stage // ranks].forward(task.microbatch, leaf)
            in_flight[key] = (leaf, output)
            if last:
                losses[task.microbatch] = output
            result = output
        else:
            leaf, output = in_flight.pop(key)
            autograd.backward((output,), (loss_grad if last else mail.take(task),))
            result = None if leaf is None else autograd.grad_of(leaf)
        mail.post(task, result)
    mail.close()
    return [losses[number] for number in sorted(losses)]


class _Mail:
    """Results on their way to the tasks that need them."""

    def __init__(self, programs: list[StageProgram], microbatches: int, pp: Group) -> None:
        self.programs, self.pp = programs, pp
        self.stages = pp.size * len(programs)
        self._arrived: dict[Task, Tensor] = {}
        self._sending: list = []
        self._expected = {peer: self._sent_here(peer, microbatches) for peer in range(pp.size) if peer != pp.rank}

    def post(self, task: Task, result: Tensor | None) -> None:
        """Send a task's result to the rank of the task that needs it."""
        target = task.consumer(self.stages)
        if target is not None:
            self._sending.append(start_exchange([(result, target.stage % self.pp.size)], [], self.pp))

    def take(self, task: Task) -> Tensor:
        """The result that `task` works on; waits for it."""
        sender = (task.stage + (-1 if task.forward else 1)) % self.pp.size
        while task not in self._arrived:
            arriving = self._expected[sender].pop(0)
            program = self.programs[arriving.stage // self.pp.size]
            # A gradient has the shape of what this stage sent on: all stages' activations of a micro-batch are alike.
            shape = (program.input_shape(arriving.microbatch), program.dtype, sender)
            (self._arrived[arriving],) = finish_exchange(start_exchange([], [shape], self.pp))
        return self._arrived.pop(task)

    def close(self) -> None:
        """Wait until everything sent has been taken over."""
        for handle in self._sending:
            finish_exchange(handle)

    def _sent_here(self, peer: int, microbatches: int) -> list[Task]:
        order = order_of_tasks(peer, self.pp.size, len(self.programs), microbatches)
        targets = [task.consumer(self.stages) for task in order]
        return [target for target in targets if target is not None and target.stage % self.pp.size == self.pp.rank]
