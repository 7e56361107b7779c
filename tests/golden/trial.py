"""A tiny training run under any parallel layout, from recorded weights on the recorded batch: what parity tests
compare.
"""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.training import OptimizerConfig
from mindspeed_llm.core import parallel_state
from mindspeed_llm.core.gpt_model import Choice, GPTModel
from mindspeed_llm.core.optimizer.optimizer import Optimizer
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.core.pipeline_parallel.schedules import forward_backward
from mindspeed_llm.runtime import autograd, device
from mindspeed_llm.training.micro_batch import Sample
from mindspeed_llm.training.objectives.objective import Objective
from mindspeed_llm.training.objectives.pretraining import Pretraining
from mindspeed_llm.training.passes import LossPasses
from tests.golden.reference import Golden

ADAMW = OptimizerConfig(lr=1e-3, lr_decay_style="constant", weight_decay=0.1, clip_grad=1.0)
# With eps far above every gradient, AdamW's update is lr / eps times the gradient: an SGD step through the same code.
SGD = OptimizerConfig(lr=1e3, weight_decay=0.0, clip_grad=0.0, adam_beta1=0.0, adam_beta2=0.0, adam_eps=1e4)
SGD_RATE = SGD.lr / SGD.adam_eps
# AdamW steps that are compared with a record, which has ten. After three, moments, bias correction and decay have all
# had their effect.
LONG_STEPS, SHORT_STEPS = 10, 3


@dataclass(frozen=True)
class Errors:
    """Largest relative errors: losses and gradient norms of the AdamW steps; gradients and parameters after one SGD
    step by L2 norm of a tensor. `worst` names the worst gradient.
    """

    loss: float
    grad_norm: float
    grad: float
    parameter: float
    worst: str


class Trial:
    """One rank's model and batch. `micro_batch` is in sequences; data-parallel ranks take the batch's rows in turn.

    The recorded weights are rounded to `dtype`; `loss_scale` multiplies the loss and is taken out of the gradients.
    `trainable` as for GPTModel. `order`: the batch has its rows in the order in which so many replicas would take them,
    so that micro-batches are of the same rows as theirs.
    """

    def __init__(self, golden: Golden, parallel: ParallelConfig, micro_batch: int = 1, dtype: str = "fp32",
                 loss_scale: float = 1.0, trainable: bool | Choice = True, order: int = 1) -> None:
        self.golden, self.parallel, self.micro_batch, self.loss_scale = golden, parallel, micro_batch, loss_scale
        self.state = parallel_state.build(golden.model, parallel)
        self.dtype = device.dtype(dtype)
        virtual = len(parallel.stage_layers(golden.model)[0])
        self.chunks = [GPTModel(golden.model, parallel, self.state, self.dtype, stage,
                                lora=golden.lora, trainable=trainable, multiple_of=self.state.dp_cp.size)
                       for stage in range(virtual)]
        samples = self.samples()
        samples = [sample for replica in range(order) for sample in samples[replica::order]]
        mine = samples[self.state.dp.rank::self.state.dp.size]
        if len(mine) % micro_batch:
            raise ValueError(f"{len(mine)} rows per replica do not make micro-batches of {micro_batch}")
        self.objective = self.make_objective()
        made = [self.objective.micro_batch(mine[start:start + micro_batch])
                for start in range(0, len(mine), micro_batch)]
        self.micro_batches = self.objective.prepared(made, self.chunks)
        self.microbatches = len(self.micro_batches)
        self.grad_scale = 1 / (self.microbatches * self.state.dp.size * loss_scale)

    def make_objective(self) -> Objective:
        """What is trained for; a trial of something else than next tokens overrides this and `samples`."""
        return Pretraining(Configs("pretrain", self.golden.model, self.parallel))

    def samples(self) -> list[Sample]:
        """The whole batch, as a data set gives it."""
        return [self._sample(row) for row in range(len(self.golden["ids"]))]

    def load(self) -> None:
        """Start from the recorded weights."""
        for chunk in self.chunks:
            for name, spec in chunk.parameters.specs.items():
                chunk.parameters.load(name, self.golden.local("weight", spec, self.state.tp.rank, self.state.tp.size))
            chunk.parameters.drop_grads()

    def optimizer(self, config: OptimizerConfig) -> Optimizer:
        """A fresh optimizer of the chunks."""
        return Optimizer(self.chunks, config, self.state, self.parallel.use_distributed_optimizer)

    def logits_and_loss(self) -> tuple[np.ndarray, float]:
        """Logits `(B, S, V)` and loss of the batch from the recorded weights; of one process and a single micro-batch."""
        self.load()
        (model,), (micro,) = self.chunks, self.micro_batches
        with autograd.no_grad():
            hidden = model.hidden_states(Tensor(micro.tokens), model.training_context(micro.seq_length))
            return (model.logits(hidden).asnumpy().transpose(1, 0, 2),
                    float(self.objective.loss(model, hidden, micro)[0]))

    def forward_backward(self) -> float:
        """Accumulate the gradients of the whole batch; returns the batch's mean loss, on every rank."""
        return self.step_means()[0]

    def step_means(self) -> tuple[float, dict[str, float]]:
        """`forward_backward` that also returns what the objective reports."""
        passes = self.passes()
        seed = Tensor(np.float32(self.loss_scale))
        losses = forward_backward(passes.programs, self.microbatches, self.state.pp, seed)
        return passes.means(losses, self.state)

    def passes(self) -> LossPasses:
        """What the chunks do with the batch's micro-batches."""
        return LossPasses(self.objective.loss, self.objective.metrics, self.chunks, self.micro_batches)

    def adamw(self, steps: int) -> tuple[list[float], list[float]]:
        """Losses and gradient norms of AdamW steps from the recorded weights."""
        self.load()
        optimizer, losses, norms = self.optimizer(ADAMW), [], []
        for _ in range(steps):
            optimizer.zero_grad()
            optimizer.expect_gradients(self.microbatches)
            losses.append(self.forward_backward())
            norms.append(optimizer.step(ADAMW.lr, self.grad_scale).grad_norm)
        return losses, norms

    def sgd_step(self) -> tuple[dict[str, float], dict[str, float]]:
        """Errors of each gradient and of each parameter after one SGD step, relative to the whole tensor's L2 norm.

        Gradients are compared on the part of a tensor that this rank updates, parameters on all that it holds.
        """
        parameter_errors, grad_errors = {}, self.gradient_errors(self.take_sgd_step(), self.golden)
        for chunk in self.chunks:
            for name, spec in chunk.parameters.specs.items():
                gradient = self.local("grad", chunk.parameters, name) if spec.trainable else 0
                weight = self.local("weight", chunk.parameters, name)
                update = SGD_RATE * gradient / (1 + np.abs(gradient) / SGD.adam_eps)
                got = chunk.parameters[name].asnumpy().astype(np.float64)
                parameter_errors[name] = distance(got, weight - update) / np.linalg.norm(weight)
        return grad_errors, parameter_errors

    def take_sgd_step(self) -> Optimizer:
        """One SGD step from the recorded weights; its gradients stay in the chunks."""
        self.load()
        optimizer = self.optimizer(SGD)
        optimizer.expect_gradients(self.microbatches)
        self.forward_backward()
        optimizer.step(SGD.lr, self.grad_scale)
        return optimizer

    def gradient_errors(self, optimizer: Optimizer, record: Golden) -> dict[str, float]:
        """Errors of the gradients that `optimizer` has just used against those of `record`, as in `sgd_step`."""
        errors = {}
        for chunk_state in optimizer.chunk_states:
            parameters = chunk_state.chunk.parameters
            for piece in chunk_state.pieces:
                got = parameters.grads.slice(piece.offset, piece.offset + piece.length).asnumpy() * self.grad_scale
                expected = self.local("grad", parameters, piece.name, record).reshape(-1)[piece.start:piece.stop]
                errors[piece.name] = distance(got, expected) / record.norm(piece.name)
        return errors

    def errors(self, steps: int = LONG_STEPS) -> Errors:
        """Everything that the parity table reports, as seen by this rank."""
        grad_errors, parameter_errors = self.sgd_step()
        losses, norms = self.adamw(steps)
        worst = max(grad_errors, key=grad_errors.get, default="-")
        return Errors(relative(losses, self.golden["adamw_losses"][:steps]),
                      relative(norms, self.golden["adamw_grad_norms"][:steps]), grad_errors.get(worst, 0.0),
                      max(parameter_errors.values(), default=0.0), f"{worst} of rank {self.state.world.rank}")

    def local(self, kind: str, parameters: ParameterSet, name: str, record: Golden | None = None) -> np.ndarray:
        """This tensor-parallel rank's part of `kind/name` of a record (the trial's own by default), fp64."""
        spec = parameters.specs[name]
        return (record or self.golden).local(kind, spec, self.state.tp.rank, self.state.tp.size).astype(np.float64)

    def _sample(self, row: int) -> Sample:
        """A row of the batch; every token counts."""
        length = self.golden["lengths"][row]
        sample = {"tokens": self.golden["ids"][row, :length], "labels": self.golden["labels"][row, :length],
                  "loss_mask": np.ones(length, np.float32)}
        return sample | ({"cu_seqlens": self.golden["cu_seqlens"]} if "cu_seqlens" in self.golden else {})


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    """L2 norm of the difference."""
    return float(np.linalg.norm(got.astype(np.float64) - expected))


def relative(got: list[float], expected: np.ndarray) -> float:
    """Largest relative difference of two series; infinite if any is not a number."""
    error = np.abs(np.asarray(got, np.float64) - expected) / np.abs(expected)
    return float(error.max()) if np.isfinite(error).all() else float("inf")
