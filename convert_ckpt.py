r"""Convert GLM4 weights between Hugging Face and mcore layout. Runs on CPU.

    python convert_ckpt.py --load-model-type hf --save-model-type mg --model-type-hf chatglm3 \
        --load-dir ./model_from_hf/glm4_hf/ --save-dir ./model_weights/glm4_mcore/ \
        --target-tensor-parallel-size 2 --target-pipeline-parallel-size 2 --params-dtype bf16
    python convert_ckpt.py --load-model-type mg --save-model-type hf --model-type-hf chatglm3 \
        --load-dir ./model_weights/glm4_mcore/ --hf-dir ./model_from_hf/glm4_hf/ --save-dir ./glm4_hf_new/
    python convert_ckpt.py --verify ./model_weights/glm4_mcore/
"""

import sys

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.errors import run_main


def main() -> None:
    """Parse the command line and convert."""
    configs = parse("convert", sys.argv[1:])
    for note in configs.notes:
        print(note)
    from mindspeed_llm.tasks.convert import run

    run(configs.convert)


if __name__ == "__main__":
    run_main(main)
