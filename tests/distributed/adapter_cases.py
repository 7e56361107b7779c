"""Cases of a RankPool for test_adapters.py: training of low-rank adapters through the training loop itself."""

from pathlib import Path
from unittest.mock import patch

from mindspeed_llm import training
from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.lora import TARGETS
from mindspeed_llm.runtime import collectives
from mindspeed_llm.training.loop import Trainer
from tests.training.tiny_job import SCHEDULE, SHAPE, write_ramps


def losses(folder: str, flags: str) -> list[float]:
    """Losses of a run with these further flags; {} stands for the folder, in which one process writes the data."""
    if collectives.world().size == 1 and not Path(folder, "text.idx").exists():
        write_ramps(Path(folder) / "text")
    seen = []

    def step(trainer: Trainer, rate: float):
        outcome = original(trainer, rate)
        seen.append(outcome.loss)
        return outcome

    original = Trainer.step
    with patch.object(Trainer, "step", step):
        training.run(parse("pretrain", [*SHAPE, *SCHEDULE, "--data-path", f"{folder}/text", "--log-interval", "100",
                                        *flags.format(folder).split()], lambda _: 320))
    return seen


NEW = f"--load {{0}}/base --lora-target-modules {' '.join(TARGETS)} --lora-r 4 --lora-alpha 8 --lora-ckpt-filter "
