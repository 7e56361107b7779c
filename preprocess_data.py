r"""Turn text or instruction data into token files (.bin/.idx). Runs on CPU.

    python preprocess_data.py --input ./dataset/train.parquet --output-prefix ./dataset/alpaca \
        --tokenizer-name-or-path ./model_from_hf/glm4_hf/ --workers 4
    python preprocess_data.py --input ./dataset/alpaca.json --output-prefix ./finetune_dataset/alpaca \
        --tokenizer-name-or-path ./model_from_hf/glm4_hf/ --handler-name AlpacaStyleInstructionHandler \
        --prompt-type glm4 --seq-length 32768 --pack --append-eod
"""

import os
import sys

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.errors import run_main


def main() -> None:
    """Parse the command line and write the token files."""
    configs = parse("preprocess", sys.argv[1:])
    for note in configs.notes:
        print(note)
    # No linear algebra here, and NumPy's threads for it would keep worker processes from being forked.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from mindspeed_llm.tasks.preprocess import run

    run(configs.data)


if __name__ == "__main__":
    run_main(main)
