"""`convert_ckpt.py`: dispatch by direction, and the log lines that users' tools wait for."""

import logging
from collections.abc import Callable

from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.tasks.convert import adapters, hf_to_mcore, mcore_to_hf
from mindspeed_llm.tasks.convert.verify import verify


def run(config: ConvertConfig) -> None:
    """Convert hf -> mg or mg -> hf and say where the result is, or verify. Raises UserError or FileNotFoundError for bad
    input.
    """
    logging.basicConfig(level=logging.INFO)
    if config.verify is not None:
        verify(config.verify)
        return
    iteration = _conversion(config)(config)
    print(f"successfully saved checkpoint from iteration {iteration} to {config.save_dir}", flush=True)
    logging.info("Done!")


def _conversion(config: ConvertConfig) -> Callable[[ConvertConfig], int]:
    if (config.load_model_type, config.save_model_type) == ("hf", "mg"):
        return adapters.from_peft if config.lora_load else hf_to_mcore.convert
    return adapters.to_peft if config.save_lora_to_hf else mcore_to_hf.convert
