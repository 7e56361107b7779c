"""Sums over the parts of a sequence that context-parallel ranks hold."""

from mindspore import Tensor

from mindspeed_llm.runtime.autograd import Function
from mindspeed_llm.runtime.collectives import Group, all_reduce


def sum_over_parts(values: Tensor, group: Group) -> Tensor:
    """Sum of every rank's `values`, on every rank.

    What ranks make of the sum adds up to the loss, so backward gives each the sum of all ranks' gradients.
    """
    return values if group.size == 1 else _SumOverParts.apply(values, group)


class _SumOverParts(Function):
    @staticmethod
    def forward(ctx, values, group):
        ctx.group = group
        return all_reduce(values, group)

    @staticmethod
    def backward(ctx, grad):
        return all_reduce(grad, ctx.group), None
