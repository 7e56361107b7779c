"""Cases of a RankPool for test_preference_parity.py: preference tuning under parallel layouts, also with bugs."""

from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

from mindspeed_llm import training
from mindspeed_llm.checkpoint.safetensors_io import SafetensorsFile
from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.context_parallel import sums
from mindspeed_llm.training.objectives import preference
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
from mindspeed_llm.training.loop import Trainer
from tests.golden.preference_trial import PreferenceTrial
from tests.training.tiny_job import SCHEDULE, SHAPE, write_pairs, write_ramps


def _own_part(values, group):
    return values


class _OwnGradient(sums._SumOverParts):
    @staticmethod
    def backward(ctx, grad):
        return grad, None


BUGS = {"log-probabilities not summed over the parts of a sequence":
        lambda: patch.object(preference, "sum_over_parts", _own_part),
        "every part has the gradient of its own share of the loss":
        lambda: patch.object(sums, "_SumOverParts", _OwnGradient),
        "metrics not shared among the parts": lambda: patch.object(
            preference, "pair_metrics", lambda config, scores, logps, honest=preference.pair_metrics: {
                name: 2 * value for name, value in honest(config, scores, logps).items()})}


def errors(parallel: dict, micro_batch: int, cases: list[str], bug: str | None = None) -> dict[str, dict[str, float]]:
    """`{case: errors}` of recorded cases."""
    with BUGS[bug]() if bug else nullcontext():
        return {case: PreferenceTrial(case, ParallelConfig(**parallel), micro_batch).measure() for case in cases}


def write_job(folder: Path) -> None:
    """Data and tokenizer of a whole run, and for one process: the checkpoint that it starts from."""
    write_pairs(folder / "pairs", 13)
    write_ramps(folder / "text")
    write_chatglm_tokenizer(folder / "tokenizer", train_tiktoken_bpe(["one two three four five"] * 4, 260))
    training.run(parse("pretrain", [*SHAPE, *SCHEDULE, "--train-iters", "1", "--data-path", f"{folder}/text", "--save",
                                    f"{folder}/start", "--tokenizer-name-or-path", f"{folder}/tokenizer"]))


def whole_run(folder: str, flags: str) -> dict:
    """Losses and metrics of every step of a run, and what it keeps of the reference model (--precompute-ref)."""
    outcomes, step = [], Trainer.step

    def remember(trainer: Trainer, rate: float):
        outcomes.append(step(trainer, rate))
        return outcomes[-1]
    configs = parse("pretrain", [
        *SHAPE, *SCHEDULE, *flags.split(), "--stage", "dpo", "--is-pairwise-dataset", "--no-pad-to-seq-lengths",
        "--data-path", f"{folder}/pairs", "--load", f"{folder}/start", "--finetune", "--ref-model", f"{folder}/start",
        "--tokenizer-name-or-path", f"{folder}/tokenizer", "--micro-batch-size", "1"])
    with patch.object(Trainer, "step", remember):
        training.run(configs)
    (kept,) = Path(folder).glob("pairs_reference_*") if configs.preference.precompute_ref else (None,)
    logps = SafetensorsFile(kept).flat("logps").tolist() if kept else []
    return {"losses": [each.loss for each in outcomes], "metrics": [each.metrics for each in outcomes], "logps": logps}
