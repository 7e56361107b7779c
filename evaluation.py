r"""Evaluate a checkpoint on a benchmark.

    msrun --worker_num 2 --local_worker_num 2 --join True evaluation.py --pipeline-model-parallel-size 2 \
        --load ./model_weights/glm4_mcore/ --tokenizer-name-or-path ./model_from_hf/glm4_hf/ --bf16 \
        --task mmlu --task-data-path ./mmlu/test/ --no-chat-template
"""

import sys

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.errors import run_main


def main() -> None:
    """Parse the command line and evaluate."""
    configs = parse("evaluation", sys.argv[1:])
    from mindspeed_llm.tasks.evaluation import run

    run(configs)


if __name__ == "__main__":
    run_main(main)
