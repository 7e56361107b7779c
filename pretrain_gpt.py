"""Pre-train GLM4, or fine-tune it with `--stage sft --is-instruction-dataset`.

    msrun --worker_num 8 --local_worker_num 8 --join True pretrain_gpt.py <flags>

The flags are long: examples/mindspore/glm4/pretrain_glm4_9b_8k_ms.sh and tune_glm4_9b_32k_full_ms.sh hold them.
`python pretrain_gpt.py <flags>` runs one process; `python pretrain_gpt.py --help` lists the flags.
"""

import sys

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.errors import run_main


def vocab_size_of(data: DataConfig) -> int:
    """Ids of the tokenizer, for a command line without --padded-vocab-size."""
    from mindspeed_llm.data.tokenizer import load_tokenizer

    return load_tokenizer(data.tokenizer_name_or_path, data.tokenizer_type).vocab_size


def main() -> None:
    """Parse the command line and train, or with --dry-run say what training would take."""
    configs = parse("pretrain", sys.argv[1:], vocab_size_of)
    if configs.train.dry_run:
        from mindspeed_llm.tasks.planner import run as plan

        plan(configs)
        return
    from mindspeed_llm.training import run

    benchmark_of = None
    if configs.train.eval_task is not None:
        from mindspeed_llm.tasks.evaluation.while_training import TrainingBenchmark as benchmark_of

    run(configs, benchmark_of)


if __name__ == "__main__":
    run_main(main)
