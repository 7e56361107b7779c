"""Cases of a RankPool for test_layer_parity.py: every tensor-parallel layer beside the plain one, on all ranks.

Each rank also computes the plain layer, with whole tensors and no communication, and compares its own part of the
output, of the input's gradient and of every parameter's gradient: L2 norm of the difference over that of the part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspeed_llm import kernels
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core import parallel_state
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.optimizer import gradients
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.tensor_parallel import cross_entropy as output_loss
from mindspeed_llm.core.tensor_parallel import layers
from mindspeed_llm.runtime import autograd, collectives
from mindspeed_llm.runtime.collectives import Group

MODEL = ModelConfig(num_layers=1, hidden_size=32, ffn_hidden_size=48, num_attention_heads=8, num_query_groups=2,
                    kv_channels=8, padded_vocab_size=96, max_position_embeddings=64, post_norm=True)
LENGTH, BATCH = 16, 2


@dataclass(frozen=True)
class Cut:
    """How a rank's part is cut out of a whole array: the axis, or None for all of it."""

    group: Group

    def along(self, array: np.ndarray, axis: int | None) -> np.ndarray:
        """This rank's equal part of `array` along `axis`."""
        return array if axis is None else np.ascontiguousarray(np.split(array, self.group.size, axis)[self.group.rank])


def draw(name: str, *shape: int) -> np.ndarray:
    """The same normal fp32 array on every rank, by name."""
    seed = int.from_bytes(name.encode(), "little") % 2**63
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def tokens(name: str) -> np.ndarray:
    """int32 ids `(S, B)`, the same on every rank."""
    return (np.abs(draw(name, LENGTH, BATCH)) * 1e6).astype(np.int32) % MODEL.padded_vocab_size


def parameter(array: np.ndarray) -> Tensor:
    """A tensor with a `main_grad`."""
    tensor = Tensor(array)
    tensor.requires_grad_(True)
    tensor.main_grad = Tensor.from_numpy(np.zeros(array.shape, np.float32))
    return tensor


def through(block: Callable[[Tensor], Tensor], x: np.ndarray | None, grad: np.ndarray) -> dict[str, np.ndarray]:
    """Output of `block`, and with an input `x` its gradient, for the output's gradient `grad`."""
    leaf = None if x is None else autograd.leaf(Tensor(x))
    out = block(leaf)
    autograd.backward((out,), (Tensor(grad),))
    seen = {"output": out.asnumpy()}
    return seen if leaf is None else seen | {"input": autograd.grad_of(leaf).asnumpy()}


def errors(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative L2 errors; both must have the same names and shapes."""
    if {name: array.shape for name, array in got.items()} != {name: array.shape for name, array in expected.items()}:
        raise AssertionError(f"{ {n: a.shape for n, a in got.items()} } is not {list(expected)}")
    return {name: float(np.linalg.norm(got[name].astype(np.float64) - array) / np.linalg.norm(array))
            for name, array in expected.items()}


def column_parallel(tp: Group, sp: bool) -> dict[str, float]:
    x, weight, bias = draw("x", LENGTH, BATCH, 32), draw("w", 64, 32), draw("b", 64)
    grad, cut, rows = draw("g", LENGTH, BATCH, 64), Cut(tp), 0 if sp else None
    whole_w, whole_b = parameter(weight), parameter(bias)
    plain = through(lambda t: kernels.linear(t, whole_w, whole_b), x, grad)
    w, b = parameter(cut.along(weight, 0)), parameter(cut.along(bias, 0))
    seen = through(lambda t: layers.column_parallel_linear(t, w, b, tp, sp), cut.along(x, rows), cut.along(grad, 2))
    return errors(
        seen | {"weight": w.main_grad.asnumpy(), "bias": b.main_grad.asnumpy()},
        {"output": cut.along(plain["output"], 2), "input": cut.along(plain["input"], rows),
         "weight": cut.along(whole_w.main_grad.asnumpy(), 0), "bias": cut.along(whole_b.main_grad.asnumpy(), 0)})


def row_parallel(tp: Group, sp: bool) -> dict[str, float]:
    x, weight, grad = draw("x", LENGTH, BATCH, 64), draw("w", 32, 64), draw("g", LENGTH, BATCH, 32)
    cut, rows = Cut(tp), 0 if sp else None
    whole = parameter(weight)
    plain = through(lambda t: kernels.linear(t, whole), x, grad)
    w = parameter(cut.along(weight, 1))
    seen = through(lambda t: layers.row_parallel_linear(t, w, tp, sp), cut.along(x, 2), cut.along(grad, rows))
    return errors(seen | {"weight": w.main_grad.asnumpy()},
                  {"output": cut.along(plain["output"], rows), "input": cut.along(plain["input"], 2),
                   "weight": cut.along(whole.main_grad.asnumpy(), 1)})


def embedding(tp: Group, sp: bool) -> dict[str, float]:
    weight, grad, ids = draw("w", MODEL.padded_vocab_size, 32), draw("g", LENGTH, BATCH, 32), Tensor(tokens("ids"))
    cut, rows = Cut(tp), 0 if sp else None
    whole, w = parameter(weight), parameter(cut.along(weight, 0))
    plain = through(lambda _: kernels.embedding(whole, ids), None, grad)
    seen = through(lambda _: layers.vocab_parallel_embedding(ids, w, tp, sp), None, cut.along(grad, rows))
    return errors(seen | {"weight": w.main_grad.asnumpy()},
                  {"output": cut.along(plain["output"], rows), "weight": cut.along(whole.main_grad.asnumpy(), 0)})


def cross_entropy(tp: Group, sp: bool) -> dict[str, float]:
    """Against numpy in fp64; logits far enough apart that exp without the shared maximum would overflow. In chunks of
    11, 11 and 10 tokens.
    """
    x, weight = 300 * draw("x", LENGTH, BATCH, 32), draw("w", MODEL.padded_vocab_size, 32)
    labels, grad = tokens("labels"), np.abs(draw("g", LENGTH, BATCH))
    cut, rows = Cut(tp), 0 if sp else None
    wide = x.astype(np.float64) @ weight.astype(np.float64).T
    wide -= wide.max(-1, keepdims=True)
    lse = np.log(np.exp(wide).sum(-1, keepdims=True))
    one_hot = np.eye(MODEL.padded_vocab_size)[labels]
    d_logits = (np.exp(wide - lse) - one_hot) * grad[..., None]
    w = parameter(cut.along(weight, 0))
    with patch.object(output_loss, "LOGITS_ROWS", 12):
        seen = through(lambda t: output_loss.output_cross_entropy(t, w, Tensor(labels), tp, sp), cut.along(x, rows), grad)
    return errors(seen | {"weight": w.main_grad.asnumpy()},
                  {"output": (lse - (wide * one_hot).sum(-1, keepdims=True))[..., 0],
                   "input": cut.along(d_logits @ weight, rows),
                   "weight": cut.along(np.einsum("sbv,sbh->vh", d_logits, x), 0)})


def alone(state: ParallelState) -> ParallelState:
    """The state of one process: every group is this rank only."""
    me = Group("alone", (state.world.ranks[state.world.rank],), 0)
    return ParallelState(**dict.fromkeys(("world", "tp", "cp", "dp", "pp", "dp_cp", "model", "embedding", "kv_replica"),
                                         me), sequence_parallel=False)


def chunk_of(state: ParallelState, parallel: ParallelConfig) -> GPTModel:
    """The model with drawn weights, norms and biases far from one and zero."""
    chunk = GPTModel(MODEL, parallel, state, ms.float32)
    for name, spec in chunk.parameters.specs.items():
        whole = draw(name, *spec.shape) + np.float32(spec.init == "ones")
        chunk.parameters.load(name, part_of(whole, spec, state.tp))
    return chunk


def part_of(whole: np.ndarray, spec, tp: Group) -> np.ndarray:
    """A rank's part of a model tensor, in the rank's order."""
    axis = spec.partition_dim or 0
    return np.concatenate([whole.take(range(*segment), axis) for segment in spec.segments(tp.rank, tp.size)], axis)


def as_rows(x: Tensor) -> Tensor:
    """`(S, B, H)` as the inside of a layer has it."""
    return x.reshape(-1, x.shape[-1])


BLOCKS = {
    "attention": lambda chunk, x: chunk.parts.layers[0].self_attention(
        as_rows(x), chunk.training_context(LENGTH)).reshape(x.shape),
    "mlp": lambda chunk, x: chunk.parts.layers[0].mlp(
        as_rows(x), chunk.training_context(LENGTH)).reshape(x.shape),
    "layer": lambda chunk, x: kernels.add(*chunk.parts.layers[0](
        as_rows(x), None, chunk.training_context(LENGTH))).reshape(x.shape),
    "head": lambda chunk, x: chunk.token_losses(x, Tensor(tokens("labels"))),
}


def of_model(block: str) -> Callable[[Group, bool], dict[str, float]]:
    """A block of the model: its output, its input's gradient, and the gradients of all parameters that it uses, summed
    over ranks as before an optimizer step.
    """
    def case(tp: Group, sp: bool) -> dict[str, float]:
        cut, rows = Cut(tp), 0 if sp else None
        parallel = ParallelConfig(tensor_model_parallel_size=tp.size, sequence_parallel=sp)
        state = parallel_state.build(MODEL, parallel)
        whole, chunk = chunk_of(alone(state), ParallelConfig()), chunk_of(state, parallel)
        x = draw("x", LENGTH, BATCH, MODEL.hidden_size)
        is_loss = block == "head"
        grad = draw("g", *x.shape[:2]) if is_loss else draw("g", *x.shape)
        plain = through(lambda t: BLOCKS[block](whole, t), x, grad)
        seen = through(lambda t: BLOCKS[block](chunk, t), cut.along(x, rows),
                       grad if is_loss else cut.along(grad, rows))
        for model in (whole, chunk):
            gradients.settle(model.parameters)
        gradients.sum_partial(chunk, state, [(0, chunk.parameters.grads.numel)])
        expected = {"output": plain["output"] if is_loss else cut.along(plain["output"], rows),
                    "input": cut.along(plain["input"], rows)}
        for name, spec in whole.parameters.specs.items():
            full = whole.parameters[name].main_grad.asnumpy()
            if np.any(full):
                expected[name] = part_of(full, spec, tp)
                seen[name] = chunk.parameters[name].main_grad.asnumpy()
        return errors(seen, expected)
    return case


CASES = {"column": column_parallel, "row": row_parallel, "embedding": embedding, "cross entropy": cross_entropy,
         **{block: of_model(block) for block in BLOCKS}}

PLANTED = {
    "all-reduce dropped in f": (
        "layer", False, lambda: patch.object(layers, "start_all_reduce", lambda tensor, group: (tensor, None))),
    "partial gradients of norms not summed": (
        "layer", True, lambda: patch.object(gradients, "sum_partial", lambda chunk, state, shards: None)),
    "sequence gathered in the wrong order": (
        "mlp", True, lambda: patch.object(layers, "all_gather", _gather_reversed(layers.all_gather))),
    "every rank counts its vocabulary from 0": (
        "embedding", False, lambda: patch.object(kernels.primitives(), "embedding_fwd",
                                                 _counted_from_zero(kernels.primitives().embedding_fwd))),
}


def _gather_reversed(all_gather):
    def gather(tensor: Tensor, group: Group) -> Tensor:
        return ms.mint.cat(all_gather(tensor, group).chunk(group.size, 0)[::-1], dim=0)
    return gather


def _counted_from_zero(embedding_fwd):
    return lambda weight, ids, _: embedding_fwd(weight, ids, 0)


def case(name: str, sp: bool) -> dict[str, float]:
    """Errors of a layer, by tensor."""
    return CASES[name](collectives.world(), sp)


def case_with_bug(bug: str) -> dict[str, float]:
    """Errors of a layer with a planted bug."""
    name, sp, plant = PLANTED[bug]
    with plant():
        return case(name, sp)
