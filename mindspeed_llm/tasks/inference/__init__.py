"""Generation as a job: prompts, chat, streaming (`inference.py`)."""

from mindspeed_llm.config.command_line import Configs


def run(configs: Configs) -> None:
    """Do what `inference.py`'s command line asks for; see `job.run`."""
    from mindspeed_llm.tasks.inference.job import run as run_job

    run_job(configs)
