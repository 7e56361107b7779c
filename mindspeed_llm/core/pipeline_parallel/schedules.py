"""Running a pipeline's tasks: micro-batches go forward and backward through the stages in the order of `order.py`,
their results through `mail.py`.
"""

from mindspore import Tensor

from mindspeed_llm.core.pipeline_parallel.mail import Mail
from mindspeed_llm.core.pipeline_parallel.order import Task, plans
from mindspeed_llm.core.pipeline_parallel.stage import StageProgram
from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.collectives import Group
from mindspeed_llm.runtime.trace import span


def forward_backward(programs: list[StageProgram], microbatches: int, pp: Group, loss_grad: Tensor) -> list[Tensor]:
    """Run all micro-batches forward and backward. Gradients accumulate in the parameters.

    One program per chunk of the rank: 1F1B for one, the interleaved schedule for several. `loss_grad` (scalar fp32)
    starts every backward pass: it carries the loss scale. Returns the last stage's losses (empty elsewhere), detached,
    in micro-batch order.
    """
    last = pp.size * len(programs) - 1
    in_flight: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}
    losses: dict[int, Tensor] = {}

    def run(task: Task, received: Tensor | None) -> Tensor | None:
        key = (task.stage, task.microbatch)
        if task.forward:
            leaf = None if received is None else autograd.leaf(received)
            output = programs[task.stage // pp.size].forward(task.microbatch, leaf)
            in_flight[key] = (leaf, output)
            if task.stage == last:
                losses[task.microbatch] = output
            return output
        leaf, output = in_flight.pop(key)
        autograd.backward((output,), (loss_grad if received is None else received,))
        return None if leaf is None else autograd.grad_of(leaf)

    _run(run, programs, microbatches, pp, training=True)
    return [losses[number] for number in sorted(losses)]


def forward_only(programs: StageProgram | list[StageProgram], microbatches: int, pp: Group) -> list[Tensor]:
    """Run all micro-batches forward, unrecorded; returns the last stage's outputs (empty elsewhere).

    Takes one program, or one per chunk of the rank.
    """
    programs = programs if isinstance(programs, list) else [programs]
    last = pp.size * len(programs) - 1
    outputs: dict[int, Tensor] = {}

    def run(task: Task, received: Tensor | None) -> Tensor:
        output = programs[task.stage // pp.size].forward(task.microbatch, received)
        if task.stage == last:
            outputs[task.microbatch] = output
        return output

    with autograd.no_grad():
        _run(run, programs, microbatches, pp, training=False)
    return [outputs[number] for number in sorted(outputs)]


def _run(run, programs: list[StageProgram], microbatches: int, pp: Group, *, training: bool) -> None:
    """`run(task, input or None at the ends) -> result` for all of this rank's tasks, with the messages between them."""
    stages = pp.size * len(programs)
    plan = plans(pp.size, len(programs), microbatches, training)[pp.rank]
    mail = Mail(plan, programs, pp)
    for clock, task in plan.tasks:
        mail.post(clock)
        received = None if task.producer(stages) is None else mail.take(task)
        with span("forward" if task.forward else "backward", "pass", stage=task.stage, microbatch=task.microbatch):
            result = run(task, received)
        if task.consumer(stages) is not None:
            mail.put(task, result)
    mail.close()
