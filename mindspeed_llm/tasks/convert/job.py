"""`convert_ckpt.py`: dispatch by direction, and the log lines that users' tools wait for."""

import logging

from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.tasks.convert import hf_to_mcore, mcore_to_hf
from mindspeed_llm.tasks.convert.verify import verify

_CONVERT = {("hf", "mg"): hf_to_mcore.convert, ("mg", "hf"): mcore_to_hf.convert}


def run(config: ConvertConfig) -> None:
    """Convert hf -> mg or mg -> hf and say where the result is, or verify. Raises UserError or FileNotFoundError for bad
    input.
    """
    logging.basicConfig(level=logging.INFO)
    if config.verify is not None:
        verify(config.verify)
        return
    iteration = _CONVERT[config.load_model_type, config.save_model_type](config)
    print(f"successfully saved checkpoint from iteration {iteration} to {config.save_dir}", flush=True)
    logging.info("Done!")
