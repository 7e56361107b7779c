"""`convert_ckpt.py`: dispatch by direction, and the log lines that users' tools wait for."""

import logging

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.training import ConvertConfig
from mindspeed_llm.tasks.convert import hf_to_mcore, mcore_to_hf


def run(config: ConvertConfig) -> None:
    """Convert hf -> mg or mg -> hf and say where the result is. Raises UserError or FileNotFoundError for bad input."""
    logging.basicConfig(level=logging.INFO)
    for value, flag in ((config.load_dir, "--load-dir"), (config.save_dir, "--save-dir")):
        if not value:
            raise UserError(f"{flag} is missing: give a directory")
    direction = (config.load_model_type, config.save_model_type)
    if direction == ("hf", "mg"):
        iteration = hf_to_mcore.convert(config)
    elif direction == ("mg", "hf"):
        iteration = mcore_to_hf.convert(config)
    else:
        raise UserError(f"--load-model-type {direction[0]} with --save-model-type {direction[1]} is no conversion: use "
                        "hf with mg, or mg with hf (another split needs none: any split loads any checkpoint)")
    print(f"successfully saved checkpoint from iteration {iteration} to {config.save_dir}", flush=True)
    logging.info("Done!")
