"""Results on their way between the stages of a pipeline."""

from collections import deque

from mindspore import Tensor

from mindspeed_llm.core.pipeline_parallel.order import TICKS, Plan, Round, Task
from mindspeed_llm.core.pipeline_parallel.stage import StageProgram
from mindspeed_llm.runtime.collectives import Group, finish_exchange, start_exchange


class Mail:
    """Posts the rounds of a rank's plan and hands out what arrives.

    The rank waits for a message only when a task needs it, never for a send alone: on Ascend the wait would hold up the
    computation. Rounds end in the order in which they were posted.
    """

    def __init__(self, plan: Plan, programs: list[StageProgram], pp: Group) -> None:
        self.programs, self.pp = programs, pp
        self._keep = TICKS * pp.size
        self._to_post = deque(plan.rounds)
        self._posted: deque[tuple[Round, object]] = deque()
        self._made: dict[Task, Tensor] = {}
        self._arrived: dict[Task, Tensor] = {}

    def put(self, task: Task, result: Tensor) -> None:
        """Hand over a task's result; it leaves with its round."""
        self._made[task] = result

    def post(self, clock: float) -> None:
        """Post the rounds before `clock`. Rounds that are long over are ended, so that what they sent is freed also on
        a rank that takes nothing.
        """
        while self._to_post and self._to_post[0].clock < clock:
            this = self._to_post.popleft()
            self._posted.append((this, start_exchange(self._sends(this), self._receives(this), self.pp)))
        while self._posted and self._posted[0][0].clock < clock - self._keep:
            self._end_round()

    def take(self, task: Task) -> Tensor:
        """The input of `task`; waits for it."""
        while task not in self._arrived:
            self._end_round()
        return self._arrived.pop(task)

    def close(self) -> None:
        """Post what is left and wait for everything."""
        self.post(float("inf"))
        while self._posted:
            self._end_round()

    def _end_round(self) -> None:
        this, handle = self._posted.popleft()
        self._arrived.update(zip(this.arriving, finish_exchange(handle), strict=True))

    def _sends(self, this: Round) -> list[tuple[Tensor, int]]:
        if this.sent is None:
            return []
        consumer = this.sent.consumer(self.pp.size * len(self.programs))
        return [(self._made.pop(this.sent), consumer.stage % self.pp.size)]

    def _receives(self, this: Round) -> list[tuple[tuple[int, ...], object, int]]:
        messages = []
        for task in this.arriving:
            program = self.programs[task.stage // self.pp.size]
            # A gradient has the shape of what this stage sent on: all stages' activations of a micro-batch are alike.
            sender = task.producer(self.pp.size * len(self.programs)).stage % self.pp.size
            messages.append((program.input_shape(task.microbatch), program.dtype, sender))
        return messages
