"""The quickstart's closing report: what the six jobs did, in numbers, with a picture of the losses."""

from dataclasses import dataclass, field
from pathlib import Path

from mindspeed_llm.checkpoint.files import write_picture, write_text
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.report.logs import Iteration, read_log, read_run
from mindspeed_llm.tasks.quickstart.logs import Accuracy, read_accuracy, read_times

LOSS_PICTURE = "loss.png"
REPORT = "report.md"
_SAMPLE_LINES = 40
_LOG_LINES = ("INFO:", "WARNING:", "[WARNING]", "[ERROR]")


@dataclass(frozen=True)
class Results:
    """Everything that the report says."""

    pretrain: list[Iteration]
    tune: list[Iteration]
    before: Accuracy
    after: Accuracy
    times: dict[str, float]
    samples: list[str] = field(default_factory=list)

    @property
    def minutes(self) -> float:
        """Sum of the jobs' times."""
        return sum(self.times.values()) / 60


def collect(pretrain_log: Path, tune_log: Path, before_log: Path, after_log: Path, times: Path,
            generate_log: Path | None = None) -> Results:
    """Reads the logs. Raises FileNotFoundError or UserError naming the log that is missing or incomplete."""
    return Results(read_run(pretrain_log).iterations, read_run(tune_log).iterations, read_accuracy(before_log),
                   read_accuracy(after_log), read_times(times),
                   read_samples(generate_log) if generate_log is not None else [])


def read_samples(path: str | Path) -> list[str]:
    """The generated texts of a generation log: from its first `You:` on, without log lines, at most 40 lines."""
    lines = [line.rstrip() for line in read_log(path).splitlines()]
    starts = [index for index, line in enumerate(lines) if line.lstrip().startswith("You:")]
    if not starts:
        raise UserError(f"{path} has no generated text (no line 'You:'): the generation did not get that far; read the "
                        "log's end")
    kept = [line for line in lines[starts[0]:] if line and not line.startswith(_LOG_LINES)]
    return kept[:_SAMPLE_LINES]


def summary_lines(results: Results) -> list[str]:
    """The lines that are printed, and that the report begins with; their wording is a contract."""
    lines = []
    for name, iterations in (("pre-training", results.pretrain), ("fine-tuning", results.tune)):
        first, last = iterations[0], iterations[-1]
        lines.append(f"{name} loss: {first.loss:.4f} (iteration {first.number}) -> {last.loss:.4f} "
                     f"(iteration {last.number}){_speed(iterations)}")
    lines.append(f"accuracy before fine-tuning: {results.before.share:.2f}")
    lines.append(f"accuracy after fine-tuning: {results.after.share:.2f}")
    lines.append(f"total minutes: {results.minutes:.1f}")
    return lines


def markdown(results: Results) -> str:
    """The text of report.md, which shows the picture `loss.png` beside it."""
    parts = ["# Quickstart report", "", *(f"- {line}" for line in summary_lines(results)), "",
             f"![loss of pre-training and fine-tuning]({LOSS_PICTURE})", "", "## Evaluation", "",
             "Multiple-choice questions about names that fine-tuning never saw; guessing gives 0.25.", "",
             "| model | right | questions | accuracy |", "|---|---|---|---|"]
    for name, score in (("pre-trained", results.before), ("fine-tuned", results.after)):
        parts.append(f"| {name} | {score.right} | {score.questions} | {score.share:.4f} |")
    parts += ["", "## Time", "", "| job | seconds |", "|---|---|"]
    parts += [f"| {name} | {seconds:.1f} |" for name, seconds in results.times.items()]
    parts += [f"| total | {sum(results.times.values()):.1f} |", ""]
    if results.samples:
        parts += ["## Generated text", "", "```text", *results.samples, "```", ""]
    return "\n".join(parts)


def draw_losses(results: Results, path: str | Path) -> None:
    """A PNG with both loss curves side by side; it appears whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, title, iterations in zip(axes, ("pre-training", "fine-tuning"), (results.pretrain, results.tune)):
        axis.plot([line.number for line in iterations], [line.loss for line in iterations], color="tab:blue")
        axis.set(title=title, xlabel="iteration", ylabel="loss (nats per token)")
        axis.set_yscale("log")
        axis.grid(True, which="both", alpha=0.3)
    write_picture(path, figure, dpi=110)
    pyplot.close(figure)


def write_report(directory: str | Path, results: Results) -> Path:
    """Writes loss.png and report.md into `directory`; returns the report's path."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    draw_losses(results, directory / LOSS_PICTURE)
    write_text(directory / REPORT, markdown(results))
    return directory / REPORT


def check_accuracy(results: Results, most_before: float | None, least_after: float | None) -> None:
    """Raises UserError when an accuracy misses its bound (None: no bound)."""
    before, after = results.before.share, results.after.share
    if most_before is not None and before > most_before:
        raise UserError(f"accuracy before fine-tuning is {before:.4f}, at most {most_before} was expected: the "
                        "pre-trained model should not know the form of the answer")
    if least_after is not None and after < least_after:
        raise UserError(f"accuracy after fine-tuning is {after:.4f}, at least {least_after} was expected: see the "
                        f"losses in {REPORT}")


def check_adapters(full: Accuracy, adapters: Accuracy, within: float | None) -> None:
    """Raises UserError when adapters fall short of full tuning by more than `within` (None: no bound)."""
    if within is not None and adapters.share < full.share - within:
        raise UserError(f"accuracy with low-rank adapters is {adapters.share:.4f}, that of full fine-tuning "
                        f"{full.share:.4f}: at most {within} less was expected; see the losses in tune_lora.log")


def check_preferences(reward: float, before: Accuracy, after: Accuracy, least_reward: float | None,
                      within: float | None) -> None:
    """Raises UserError when preference tuning reached less than `least_reward`, or the evaluation lost more than
    `within`.
    """
    if least_reward is not None and reward < least_reward:
        raise UserError(f"reward accuracy is {reward:.4f}, at least {least_reward} was expected; see dpo.log")
    if within is not None and after.share < before.share - within:
        raise UserError(f"accuracy after preference tuning is {after.share:.4f}, before it was {before.share:.4f}: at "
                        f"most {within} less was expected; see dpo.log")


def _speed(iterations: list[Iteration]) -> str:
    speeds = [line.tokens_per_second for line in iterations if line.tokens_per_second is not None]
    return f", {sorted(speeds)[len(speeds) // 2]:.0f} tokens/s" if speeds else ""
