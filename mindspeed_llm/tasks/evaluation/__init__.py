"""Evaluation on benchmarks (`evaluation.py`)."""

from mindspeed_llm.config.command_line import Configs


def run(configs: Configs) -> None:
    """Do what `evaluation.py`'s command line asks for; see `job.run` and `comparison.compare`."""
    if configs.evaluation.compare:
        from mindspeed_llm.tasks.evaluation.comparison import compare

        print(compare(*configs.evaluation.compare))
        return
    from mindspeed_llm.tasks.evaluation.job import run as run_job

    run_job(configs)
