"""Communication of a tensor-parallel layer runs behind the products that do not need it."""

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from mindspeed_llm.core.tensor_parallel import layers
from mindspeed_llm.runtime import autograd, device
from mindspeed_llm.runtime.collectives import Group


@pytest.mark.parametrize("sequence_parallel, expected", [
    (True, ["start gather", "dgrad", "start sum", "end gather", "wgrad", "end sum"]),
    (False, ["dgrad", "start sum", "wgrad", "end sum"])])
def test_backward_of_a_column_parallel_layer(monkeypatch, sequence_parallel, expected):
    device.setup()
    seen = []

    def note(event, value):
        seen.append(event)
        return value

    def start(event, result):
        return lambda tensor, group: note(f"start {event}", (result(tensor), SimpleNamespace(
            wait=lambda: seen.append(f"end {event}"))))

    shapes = (2, 3), (5, 3), (4 if sequence_parallel else 2, 5)
    x, weight, grad = (Tensor(np.ones(shape, np.float32)) for shape in shapes)
    weight.main_grad = Tensor(np.zeros((5, 3), np.float32))
    monkeypatch.setattr(layers, "all_gather", lambda tensor, group: tensor.tile((2, 1)))
    monkeypatch.setattr(layers, "start_all_gather", start("gather", lambda tensor: tensor.tile((2, 1))))
    monkeypatch.setattr(layers, "start_reduce_scatter", start("sum", lambda tensor: tensor[:2]))
    monkeypatch.setattr(layers, "start_all_reduce", start("sum", lambda tensor: tensor))
    monkeypatch.setattr(layers.kernels, "primitives", lambda: SimpleNamespace(
        linear_fwd=lambda x, weight, bias: Tensor(np.ones((x.shape[0], 5), np.float32)),
        linear_dgrad=lambda grad, weight: note("dgrad", Tensor(np.ones((grad.shape[0], 3), np.float32))),
        linear_wgrad=lambda grad, x, *target: note("wgrad", None)))
    out = layers.column_parallel_linear(autograd.leaf(x), weight, None, Group("tp", (0, 1), 0), sequence_parallel)
    autograd.backward((out,), (grad,))
    assert seen == expected
