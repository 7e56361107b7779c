"""Pipeline schedules: in which order micro-batches go forward and backward through the stages.

Method: one forward, one backward (1F1B), Narayanan et al., "Efficient Large-Scale Language Model Training on GPU
Clusters Using Megatron-LM", 2021. A stage runs `stages - rank - 1` forwards first, so that at most that many plus one
micro-batches are in flight.
"""

from mindspore import Tensor

from mindspeed_llm.core.pipeline_parallel.interleaved import forward_backward_interleaved
from mindspeed_llm.core.pipeline_parallel.stage import StageProgram
from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.collectives import Group, finish_exchange, start_exchange


def forward_backward(programs: list[StageProgram], microbatches: int, pp: Group, loss_grad: Tensor) -> list[Tensor]:
    """`forward_backward_1f1b` for a rank with one model chunk, the interleaved schedule for one with several."""
    if len(programs) > 1:
        return forward_backward_interleaved(programs, microbatches, pp, loss_grad)
    return forward_backward_1f1b(programs[0], microbatches, pp, loss_grad)


def forward_only(programs: StageProgram | list[StageProgram], microbatches: int, pp: Group) -> list[Tensor]:
    """Run all micro-batches forward, unrecorded; returns the last stage's outputs (empty elsewhere).

    Takes one program, or one per chunk of the rank: chunk c of rank p is stage c * P + p.
    """
    programs = programs if isinstance(programs, list) else [programs]
    outputs, sending = [], []
    following, previous = (pp.rank + 1) % pp.size, (pp.rank - 1) % pp.size
    with autograd.no_grad():
        for number in range(microbatches):
            for chunk, program in enumerate(programs):
                received = None
                if pp.rank > 0 or chunk > 0:
                    shape = (program.input_shape(number), program.dtype, previous)
                    (received,) = finish_exchange(start_exchange([], [shape], pp))
                output = program.forward(number, received)
                if pp.rank == pp.size - 1 and chunk == len(programs) - 1:
                    outputs.append(output)
                else:
                    sending.append(start_exchange([(output, following)], [], pp))
        for handle in sending:
            finish_exchange(handle)
    return outputs


def forward_backward_1f1b(program: StageProgram, microbatches: int, pp: Group, loss_grad: Tensor) -> list[Tensor]:
    """Run all micro-batches forward and backward. Gradients accumulate in the parameters.

    `loss_grad` (scalar fp32) starts every backward pass: it carries the loss scale. Returns the last stage's losses
    (empty elsewhere), detached, in micro-batch order.
    """
    first, last = pp.rank == 0, pp.rank == pp.size - 1
    warmup = min(pp.size - pp.rank - 1, microbatches)
    in_flight: list[tuple[Tensor | None, Tensor]] = []
    losses: list[Tensor] = []

    def forward(number: int, received: Tensor | None) -> Tensor:
        leaf = None if received is None else autograd.leaf(received)
        output = program.forward(number, leaf)
        in_flight.append((leaf, output))
        if last:
            losses.append(output)
        return output

    def backward(grad: Tensor | None) -> Tensor | None:
        leaf, output = in_flight.pop(0)
        autograd.backward((output,), (loss_grad if grad is None else grad,))
        return None if leaf is None else autograd.grad_of(leaf)

    def exchange(peer: int, tensor: Tensor | None, receive: tuple | None) -> Tensor | None:
        if tensor is None and receive is None:
            return None
        sends = [] if tensor is None else [(tensor, peer)]
        receives = [] if receive is None else [(*receive, peer)]
        received = finish_exchange(start_exchange(sends, receives, pp))
        return received[0] if received else None

    def shape(number: int) -> tuple:
        return program.input_shape(number), program.dtype

    for number in range(warmup):
        received = None if first else exchange(pp.rank - 1, None, shape(number))
        exchange(pp.rank + 1, forward(number, received), None)

    steady = microbatches - warmup
    received = None if first or steady == 0 else exchange(pp.rank - 1, None, shape(warmup))
    for step in range(steady):
        number = warmup + step
        output = forward(number, received)
        oldest = in_flight[0][1]
        grad = None if last else exchange(pp.rank + 1, output, (oldest.shape, oldest.dtype))
        input_grad = backward(grad)
        more = step + 1 < steady
        received = None if first else exchange(pp.rank - 1, input_grad, shape(number + 1) if more else None)
    for _ in range(warmup):
        oldest_output = in_flight[0][1]
        input_grad = backward(exchange(pp.rank + 1, None, (oldest_output.shape, oldest_output.dtype)))
        if not first:
            exchange(pp.rank - 1, input_grad, None)
    return losses
