r"""Generate text from a checkpoint.

    msrun --worker_num 2 --local_worker_num 2 --join True inference.py --pipeline-model-parallel-size 2 \
        --load ./model_weights/glm4_mcore/ --tokenizer-name-or-path ./model_from_hf/glm4_hf/ --bf16 \
        --task greedy do_sample --max-new-tokens 256 --prompt "How are you?"
    python inference.py --load <dir> --tokenizer-name-or-path <dir> --task chat
"""

import sys

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.errors import run_main


def main() -> None:
    """Parse the command line and generate."""
    configs = parse("inference", sys.argv[1:])
    from mindspeed_llm.tasks.inference import run

    run(configs)


if __name__ == "__main__":
    run_main(main)
