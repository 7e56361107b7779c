"""The training loop: one optimizer step after another, with logs, validation, checkpoints and a way out."""

import math
import time
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.optimizer import gradients
from mindspeed_llm.core.optimizer.optimizer import Optimizer, StepResult
from mindspeed_llm.core.optimizer.schedule import learning_rate
from mindspeed_llm.core.pipeline_parallel.schedules import forward_backward, forward_only
from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.trace import span, traced
from mindspeed_llm.session import Session
from mindspeed_llm.training.batches import Batches
from mindspeed_llm.training.benchmark import Benchmark
from mindspeed_llm.training.checkpointing import Progress
from mindspeed_llm.training.logs import Boards, IterationRecord, metric_fields
from mindspeed_llm.training.loss_scale import LossScale
from mindspeed_llm.training.micro_batch import MicroBatch
from mindspeed_llm.training.passes import LossPasses
from mindspeed_llm.training.profiling import Profiler
from mindspeed_llm.training.saving import Saver
from mindspeed_llm.training.signals import ExitSignal
from mindspeed_llm.training.throughput import Throughput
from mindspeed_llm.training.validation_samples import ValidationSamples


@dataclass(frozen=True)
class StepOutcome:
    """An optimizer step: means of loss and metrics over its batch, what the optimizer says, tokens processed, FLOPs of
    this rank where they are counted.
    """

    loss: float
    metrics: dict[str, float]
    result: StepResult
    tokens: int
    flops: float = 0.0


class Trainer:
    """Everything a run holds: model chunks, optimizer, data, progress."""

    def __init__(self, configs: Configs, session: Session, chunks: list[GPTModel], optimizer: Optimizer,
                 scale: LossScale, progress: Progress, batches: Batches, samples: ValidationSamples | None,
                 benchmark: Benchmark | None = None) -> None:
        self.configs, self.session, self.state = configs, session, session.state
        self.chunks, self.optimizer, self.scale, self.progress = chunks, optimizer, scale, progress
        self.batches, self.samples, self.benchmark = batches, samples, benchmark
        self.throughput = Throughput(chunks, session.state) if configs.train.log_throughput else None
        self.saver = Saver(configs, optimizer, scale, session.state, session.params_dtype)
        self.skipped = self.nans = 0

    def train(self) -> None:
        """Run to `train_iters` or until asked to stop; saves at the end and at every interval."""
        train, session, progress = self.configs.train, self.session, self.progress
        boards = Boards(train, main=session.is_main)
        stop = ExitSignal(train.exit_signal_handler, self.state.world)
        outcomes, started, saved = [], time.perf_counter(), progress.iteration
        profiler = Profiler(self.configs.profile, session)
        while progress.iteration < train.train_iters:
            profiler.before(progress.iteration + 1)
            rate = learning_rate(self.configs.optimizer, progress.iteration + 1, train.train_iters)
            outcome = self.step(rate)
            progress.iteration += 1
            progress.consumed_samples += train.global_batch_size
            outcomes.append(outcome)
            if progress.iteration % train.log_interval == 0:
                now = time.perf_counter()
                self._report(outcomes, (now - started) / len(outcomes), rate, boards)
                outcomes, started = [], now
            paused = time.perf_counter()
            profiler.after(progress.iteration)
            started += time.perf_counter() - paused
            if train.eval_iters and progress.iteration % train.eval_interval == 0 and self.batches.has_validation:
                paused = time.perf_counter()
                self._validate(boards)
                started += time.perf_counter() - paused
            if self.benchmark is not None and self._at(train.eval_task_interval):
                paused = time.perf_counter()
                self._examine(self.benchmark, boards)
                started += time.perf_counter() - paused
            self.saver.poll()
            stopping = stop.on_any_rank()
            if stopping or self._at(self.configs.checkpoint.save_interval):
                paused = time.perf_counter()
                saved = self._save(saved)
                started += time.perf_counter() - paused
            if stopping or self._at(train.exit_interval):
                reason = "exit signal" if stopping else "--exit-interval"
                session.say(f"stopping at iteration {progress.iteration} ({reason})")
                break
        profiler.close()
        self._save(saved)
        self.saver.finish()
        boards.close()

    @traced("iteration", "iteration")
    def step(self, rate: float) -> StepOutcome:
        """One optimizer step.

        Raises FloatingPointError naming the first bad parameter when the loss or a gradient is not finite, unless that is
        handled (fp16) or allowed (--no-check-for-nan-in-loss-and-grad).
        """
        with span("read data", "data"):
            micro_batches = self.batches.training_step()
        passes = self._passes(micro_batches, f"{self.configs.train.seed}/{self.progress.iteration}")
        self.optimizer.zero_grad()
        self.optimizer.expect_gradients(len(micro_batches))
        seed = Tensor(np.float32(self.scale.value))
        losses = forward_backward(passes.programs, len(micro_batches), self.state.pp, seed)
        divisor = len(micro_batches) * self.state.dp.size
        result = self.optimizer.step(rate, 1.0 / (divisor * self.scale.value))
        loss, metrics = passes.means(losses, self.state)
        self._account(loss, result)
        tokens = sum(micro.tokens.size for micro in micro_batches) * self.state.dp.size
        flops = self.throughput.flops(micro_batches) if self.throughput is not None else 0.0
        return StepOutcome(loss, metrics, result, tokens, flops)

    def _passes(self, micro_batches: list[MicroBatch], dropout_key: str | None = None) -> LossPasses:
        objective = self.batches.objective
        prepared = objective.prepared(micro_batches, self.chunks)
        return LossPasses(objective.loss, objective.metrics, self.chunks, prepared, dropout_key)

    def _account(self, loss: float, result: StepResult) -> None:
        bad = not (math.isfinite(loss) and result.updated)
        self.scale.update(overflowed=not result.updated)
        self.skipped += not result.updated
        self.nans += not math.isfinite(loss)
        if bad and self.configs.train.check_for_nan_in_loss_and_grad and not self.scale.dynamic:
            name = gradients.first_bad_anywhere(self.chunks, self.state) or "none"
            raise FloatingPointError(
                f"iteration {self.progress.iteration + 1}: loss {loss}, gradient norm {result.grad_norm}; first parameter "
                f"with a NaN or infinite gradient: {name}. Lower --lr, check the data, or pass "
                "--no-check-for-nan-in-loss-and-grad to skip such steps")

    def _report(self, outcomes: list[StepOutcome], seconds: float, rate: float, boards: Boards) -> None:
        train, progress = self.configs.train, self.progress
        whole = seconds * len(outcomes)
        flops = None if self.throughput is None else (sum(each.flops for each in outcomes) / whole,
                                                      self.throughput.limit)
        record = IterationRecord(
            progress.iteration, train.train_iters, progress.consumed_samples, seconds, rate, train.global_batch_size,
            float(np.mean([each.loss for each in outcomes])), self.scale.value, outcomes[-1].result.grad_norm,
            self.skipped, self.nans, sum(each.tokens for each in outcomes) / whole,
            device.peak_memory_mb(), _means([each.metrics for each in outcomes]), flops)
        self.session.say(record.line())
        boards.iteration(record)
        self.skipped = self.nans = 0

    def _validate(self, boards: Boards) -> None:
        losses, reported = [], []
        for _ in range(self.configs.train.eval_iters):
            micro_batches = self.batches.validation_step()
            passes = self._passes(micro_batches)
            loss, metrics = passes.means(forward_only(passes.programs, len(micro_batches), self.state.pp), self.state)
            losses.append(loss)
            reported.append(metrics)
        loss, metrics = float(np.mean(losses)), _means(reported)
        self.session.say(f" validation loss at iteration {self.progress.iteration} | lm loss value: {loss:.6E} | "
                         f"lm loss PPL: {math.exp(min(loss, 20)):.6E} |{metric_fields(metrics)}")
        boards.validation(self.progress.iteration, {"lm loss": loss, **metrics})
        for number, sample in enumerate(self.samples.generate() if self.samples else [], start=1):
            self.session.say(sample.line(number, self.progress.iteration))
            boards.text(f"validation sample {number}", sample.text(), self.progress.iteration)

    def _examine(self, benchmark: Benchmark, boards: Boards) -> None:
        scores = benchmark.run()
        self.session.say(scores.line(self.progress.iteration))
        boards.scalars(scores.scalars(), self.progress.iteration)

    def _at(self, interval: int | None) -> bool:
        return bool(interval) and self.progress.iteration % interval == 0

    def _save(self, last_saved: int) -> int:
        """Save unless this iteration is saved already; returns the iteration that is on disk, or on its way there."""
        if self.configs.checkpoint.save and self.progress.iteration > last_saved:
            self.saver.save(self.progress)
        return self.progress.iteration


def _means(reported: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([metrics[name] for metrics in reported])) for name in reported[0]}
