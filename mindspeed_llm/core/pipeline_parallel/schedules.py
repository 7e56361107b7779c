"""Pipeline schedules: in which order micro-batches go forward and backward through the stages.

Method: one forward, one backward (1F1B), Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters
Using Megatron-LM", 2021. A stage runs `stages - rank - 1` forwards first, so that at most that many plus one
micro-batches are in flight.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm.runtime import autograd
from mindspeed_llm.runtime.collectives import Group, finish_exchange, start_exchange


@dataclass(frozen=True)
class StageProgram:
    """What one stage does with a micro-batch.

    forward: (micro-batch number, input or None on the first stage) -> output; on the last stage the scalar loss.
    input_shape: micro-batch number -> shape of the activations that arrive for it.
    """

    forward: Callable[[int, Tensor | None], Tensor]
    input_shape: Callable[[int], tuple[int, ...]]
    dtype: mstype.Type


def forward_only(program: StageProgram, microbatches: int, pp: Group) -> list[Tensor]:
    """Run all micro-batches forward, unrecorded; returns the last stage's outputs (empty elsewhere)."""
    outputs = []
    with autograd.no_grad():
        for number in range(microbatches):
            received = _receive(program, number, pp)
            output = program.forward(number, received)
            if pp.rank < pp.size - 1:
                finish_exchange(start_exchange([(output, pp.rank + 1)], [], pp))
            else:
                outputs.append(output)
    return outputs


def forward_backward_1f1b(program: StageProgram, microbatches: int, pp: Group, loss_grad: Tensor) -> list[Tensor]:
    """Run all micro-batches forward and backward. Gradients accumulate in the parameters.

    `loss_grad` (scalar fp32) starts every backward pass: it carries the loss scale. Returns the last stage's losses (empty
    elsewhere), detached, in micro-batch order.
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


def _receive(program: StageProgram, number: int, pp: Group) -> Tensor | None:
    if pp.rank == 0:
        return None
    handle = start_exchange([], [(program.input_shape(number), program.dtype, pp.rank - 1)], pp)
    return finish_exchange(handle)[0]
