"""The tape: MindSpore's eager autograd as the rest of the project sees it.

Forward operations on tensors that require gradients are recorded as they run. `backward` walks the record from an output.
Several forwards may be in flight before their backwards run, which pipeline schedules need and `mindspore.grad` does not
allow. Uses MindSpore 2.10's `run_backward`, `_Function` and `_no_grad`, which have no public spelling yet: nothing outside
this module touches them.
"""

from collections.abc import Callable, Sequence

from mindspore import Tensor, _no_grad, mint, ops
from mindspore._c_expression import run_backward
from mindspore.common._grad_function import _Function
from mindspore.graph.api import _pynative_executor

__all__ = ["Function", "accumulate_grad", "backward", "drop_grad", "enable", "grad_of", "leaf", "no_grad",
           "recompute", "settle_grad", "wants_grad"]


class Function(_Function):
    """An operation with a gradient of its own: static `forward(ctx, ...)` and `backward(ctx, *grads)`; `apply` runs it.

    Where nothing is recorded, `apply` is a plain call of `forward`: MindSpore's own takes 10 us more, which a decode
    step would pay some ten times a layer.
    """

    @classmethod
    def apply(cls, *args):
        """`forward(ctx, *args)`, recorded for `backward` unless recording is off."""
        return super().apply(*args) if _pynative_executor.enable_grad() else cls.forward(_Unrecorded(), *args)


class _Unrecorded:
    """The `ctx` of an operation that no backward pass will visit."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Nothing is kept."""


def enable() -> None:
    """Start recording; called once at start-up."""
    _pynative_executor.set_grad_flag(True)


def no_grad() -> _no_grad:
    """Context manager: operations inside are not recorded."""
    return _no_grad()


def leaf(tensor: Tensor) -> Tensor:
    """A tensor with the same memory, cut from what made it, whose gradient `backward` leaves in `grad_of`."""
    detached = ops.stop_gradient(tensor)
    detached.requires_grad_(True)
    return detached


def grad_of(tensor: Tensor) -> Tensor | None:
    """The gradient that backward passes accumulated for a leaf, or None."""
    return tensor._grad  # MindSpore's only name for it


def backward(outputs: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """Propagate `grads` (same shapes and dtypes as `outputs`) back to every leaf. The record is freed."""
    run_backward(tuple(outputs), tuple(grads), False, False, (), True, accumulate_grad=True)


def accumulate_grad(parameter: Tensor, add: Callable[[Tensor | None, bool], Tensor | None], *,
                    needed: bool = False) -> Tensor | None:
    """Inside a `Function.backward`: add this use's gradient straight into `parameter.main_grad`; returns what `add` does.

    `add(main_grad, accumulate)` gets the fp32 `main_grad` tensor and works in place, so that no gradient-sized temporary
    is made; the Function then returns None for the parameter. `accumulate` is False for the first gradient after
    `drop_grad`: it replaces what `main_grad` held, which saves clearing it and reading the zeros. A parameter may carry
    `grad_ready`, called after each addition: the data-parallel reduction counts these to start a bucket as soon as it is
    complete.

    A frozen parameter has no `main_grad` and wants no gradient: `add` is called only if what it returns is `needed`, as
    `add(None, False)`.
    """
    if not wants_grad(parameter):
        return add(None, False) if needed else None
    result = add(parameter.main_grad, not _dropped(parameter))
    parameter.main_grad_dropped = False
    ready = getattr(parameter, "grad_ready", None)
    if ready is not None:
        ready()
    return result


def wants_grad(parameter: Tensor) -> bool:
    """Whether gradients of a parameter are accumulated: not those of a frozen one."""
    return hasattr(parameter, "main_grad")


def drop_grad(parameter: Tensor) -> None:
    """Forget what `parameter.main_grad` holds, without touching its memory."""
    parameter.main_grad_dropped = True


def settle_grad(parameter: Tensor) -> None:
    """Clear `parameter.main_grad` if no gradient came since `drop_grad`: from here on it may be read."""
    if _dropped(parameter):
        parameter.main_grad.copy_(mint.zeros(parameter.main_grad.shape, dtype=parameter.main_grad.dtype))
        parameter.main_grad_dropped = False


def _dropped(parameter: Tensor) -> bool:
    return getattr(parameter, "main_grad_dropped", False)


class _Recompute(Function):
    """Run a block without recording; in backward run it again, recorded, and go back through it."""

    @staticmethod
    def forward(ctx, block, *inputs):
        ctx.block = block
        ctx.save_for_backward(*inputs)
        with no_grad():
            return block(*inputs)

    @staticmethod
    def backward(ctx, *grads):
        inputs = [leaf(tensor) for tensor in ctx.saved_tensors]
        _pynative_executor.set_enable_grad(True)  # a backward runs with recording off
        try:
            outputs = ctx.block(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            backward(outputs, grads)
        finally:
            _pynative_executor.set_enable_grad(False)
        return (None, *(grad_of(tensor) for tensor in inputs))


def recompute(block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`block(*inputs)` that keeps only its inputs for the backward pass and computes the rest again there.

    `inputs` are the tensors through which gradients flow; anything else is bound into `block`. Method: Chen et al.,
    "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    return _Recompute.apply(block, *inputs)
