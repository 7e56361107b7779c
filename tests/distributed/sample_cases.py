"""Training on ranks that shows validation samples and runs a benchmark: what they say, and what becomes of the weights.

Prompts go through in pieces, of which a pipeline has several under way.
"""

from pathlib import Path
from unittest.mock import patch

from mindspeed_llm import training
from mindspeed_llm.config.command_line import parse
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
from mindspeed_llm.generation import generator
from mindspeed_llm.tasks.evaluation.while_training import TrainingBenchmark
from mindspeed_llm.training import validation_samples
from mindspeed_llm.training.loop import Trainer
from mindspeed_llm.training.validation_samples import ValidationSamples
from tests.distributed.scaling_cases import digests
from tests.evaluation.layouts import choice_rows, write_table
from tests.training.tiny_job import SCHEDULE, SHAPE, write_ramps

FLAGS = ("--num-layers 4 --train-iters 4 --log-interval 100 --split 90,10,0 --eval-iters 1 --eval-interval 2 "
         "--max-position-embeddings 400")


def write_job(folder: Path) -> None:
    """Data and tokenizer of all runs."""
    write_ramps(folder / "text")
    write_chatglm_tokenizer(folder / "tokenizer", train_tiktoken_bpe(["one two three four five"] * 4, 260))
    for split in ("dev", "test"):
        write_table(folder / "questions" / split / f"anatomy_{split}.csv", choice_rows(5))


def run(folder: str, flags: str) -> dict:
    """`samples` as texts, `scores` of the benchmark, `losses` of the steps, and `final`, a digest of each parameter
    that this rank holds.
    """
    samples, scores, losses, final = [], [], [], {}

    def step(trainer: Trainer, rate: float):
        outcome = train_step(trainer, rate)
        losses.append(outcome.loss)
        final.update(digests(trainer))
        return outcome

    def generate(self: ValidationSamples):
        said = say(self)
        samples.extend(sample.line(number, 0) for number, sample in enumerate(said))
        return said

    def examine(self: TrainingBenchmark):
        found = put(self)
        scores.append((found.questions, found.accuracy))
        return found

    train_step, say, put = Trainer.step, ValidationSamples.generate, TrainingBenchmark.run
    configs = parse("pretrain", [*SHAPE, *SCHEDULE, *FLAGS.split(), *flags.split(), "--data-path", f"{folder}/text",
                                 "--tokenizer-name-or-path", f"{folder}/tokenizer", "--no-chat-template"]
                    + (["--task-data-path", f"{folder}/questions/test"] if "--eval-task" in flags else []))
    with patch.object(Trainer, "step", step), patch.object(ValidationSamples, "generate", generate), \
            patch.object(TrainingBenchmark, "run", examine), patch.object(validation_samples, "NEW_TOKENS", 12), \
            patch.object(generator, "PASS_TOKENS", 5):
        training.run(configs, TrainingBenchmark if configs.train.eval_task else None)
    return {"samples": samples, "scores": scores, "losses": losses, "final": final}
