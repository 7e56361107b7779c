"""The training loop: one optimizer step after another, with logs, validation, checkpoints and a way out."""

import math
import time

import numpy as np
from mindspore import Tensor

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.core.optimizer import gradients
from mindspeed_llm.core.optimizer.optimizer import Optimizer, StepResult
from mindspeed_llm.core.optimizer.schedule import learning_rate
from mindspeed_llm.core.pipeline_parallel.schedules import forward_backward, forward_only
from mindspeed_llm.runtime import device
from mindspeed_llm.session import Session
from mindspeed_llm.training import checkpointing
from mindspeed_llm.training.batches import Batches
from mindspeed_llm.training.benchmark import Benchmark
from mindspeed_llm.training.checkpointing import Progress
from mindspeed_llm.training.logs import IterationRecord, TensorBoard
from mindspeed_llm.training.loss_scale import LossScale
from mindspeed_llm.training.passes import mean_loss, stage_programs
from mindspeed_llm.training.signals import ExitSignal
from mindspeed_llm.training.validation_samples import ValidationSamples


class Trainer:
    """Everything a run holds: model chunks, optimizer, data, progress."""

    def __init__(self, configs: Configs, session: Session, chunks: list[GPTModel], optimizer: Optimizer,
                 scale: LossScale, progress: Progress, batches: Batches, samples: ValidationSamples | None,
                 benchmark: Benchmark | None = None) -> None:
        self.configs, self.session, self.state = configs, session, session.state
        self.chunks, self.optimizer, self.scale, self.progress = chunks, optimizer, scale, progress
        self.batches, self.samples, self.benchmark = batches, samples, benchmark
        self.skipped = self.nans = 0

    def train(self) -> None:
        """Run to `train_iters` or until asked to stop; saves at the end and at every interval."""
        train, session, progress = self.configs.train, self.session, self.progress
        board = TensorBoard(train.tensorboard_dir if session.is_main else None)
        stop = ExitSignal(train.exit_signal_handler, self.state.world)
        losses, started, saved = [], time.perf_counter(), progress.iteration
        while progress.iteration < train.train_iters:
            rate = learning_rate(self.configs.optimizer, progress.iteration + 1, train.train_iters)
            loss, result, tokens = self.step(rate)
            progress.iteration += 1
            progress.consumed_samples += train.global_batch_size
            losses.append((loss, tokens))
            if progress.iteration % train.log_interval == 0:
                now = time.perf_counter()
                self._report(losses, (now - started) / len(losses), rate, result, board)
                losses, started = [], now
            if train.eval_iters and progress.iteration % train.eval_interval == 0 and self.batches.has_validation:
                paused = time.perf_counter()
                self._validate(board)
                started += time.perf_counter() - paused
            if self.benchmark is not None and self._at(train.eval_task_interval):
                paused = time.perf_counter()
                self._examine(self.benchmark, board)
                started += time.perf_counter() - paused
            stopping = stop.on_any_rank()
            if stopping or self._at(self.configs.checkpoint.save_interval):
                paused = time.perf_counter()
                saved = self._save(saved)
                started += time.perf_counter() - paused
            if stopping or self._at(train.exit_interval):
                reason = "exit signal" if stopping else "--exit-interval"
                session.say(f"stopping at iteration {progress.iteration} ({reason})")
                break
        self._save(saved)
        board.close()

    def step(self, rate: float) -> tuple[float, StepResult, int]:
        """One optimizer step; returns the batch's mean loss, the outcome, and the number of tokens it processed.

        Raises FloatingPointError naming the first bad parameter when the loss or a gradient is not finite, unless that is
        handled (fp16) or allowed (--no-check-for-nan-in-loss-and-grad).
        """
        micro_batches = self.batches.training_step()
        self.optimizer.zero_grad()
        self.optimizer.expect_gradients(len(micro_batches))
        seed = Tensor(np.float32(self.scale.value))
        programs = stage_programs(self.batches.objective, self.chunks, micro_batches)
        losses = forward_backward(programs, len(micro_batches), self.state.pp, seed)
        divisor = len(micro_batches) * self.state.dp.size
        result = self.optimizer.step(rate, 1.0 / (divisor * self.scale.value))
        loss = mean_loss(losses, len(micro_batches), self.state)
        self._account(loss, result)
        tokens = sum(micro.tokens.size for micro in micro_batches) * self.state.dp.size
        return loss, result, tokens

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

    def _report(self, losses: list[tuple[float, int]], seconds: float, rate: float, result: StepResult,
                board: TensorBoard) -> None:
        train, progress = self.configs.train, self.progress
        record = IterationRecord(
            progress.iteration, train.train_iters, progress.consumed_samples, seconds, rate, train.global_batch_size,
            float(np.mean([loss for loss, _ in losses])), self.scale.value, result.grad_norm, self.skipped, self.nans,
            sum(tokens for _, tokens in losses) / (seconds * len(losses)), device.peak_memory_mb())
        self.session.say(record.line())
        board.iteration(record)
        self.skipped = self.nans = 0

    def _validate(self, board: TensorBoard) -> None:
        losses = []
        for _ in range(self.configs.train.eval_iters):
            micro_batches = self.batches.validation_step()
            programs = stage_programs(self.batches.objective, self.chunks, micro_batches)
            outputs = forward_only(programs, len(micro_batches), self.state.pp)
            losses.append(mean_loss(outputs, len(micro_batches), self.state))
        loss = float(np.mean(losses))
        self.session.say(f" validation loss at iteration {self.progress.iteration} | lm loss value: {loss:.6E} | "
                         f"lm loss PPL: {math.exp(min(loss, 20)):.6E} |")
        board.validation(self.progress.iteration, loss)
        for number, sample in enumerate(self.samples.generate() if self.samples else [], start=1):
            self.session.say(sample.line(number, self.progress.iteration))
            board.text(f"validation sample {number}", sample.text(), self.progress.iteration)

    def _examine(self, benchmark: Benchmark, board: TensorBoard) -> None:
        scores = benchmark.run()
        self.session.say(scores.line(self.progress.iteration))
        board.scalars(scores.scalars(), self.progress.iteration)

    def _at(self, interval: int | None) -> bool:
        return bool(interval) and self.progress.iteration % interval == 0

    def _save(self, last_saved: int) -> int:
        """Save unless this iteration is saved already; returns the iteration now on disk."""
        config, configs = self.configs.checkpoint, self.configs
        if config.save and self.progress.iteration > last_saved:
            checkpointing.save(config.save, self.progress, configs.model, configs.parallel, self.optimizer, self.scale,
                               self.state, self.session.params_dtype, configs.train.seed,
                               with_optimizer=not config.no_save_optim)
        return self.progress.iteration
