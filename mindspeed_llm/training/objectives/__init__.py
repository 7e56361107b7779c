"""What training is for, one file an objective: its samples, its micro-batches, its loss (see `objective.Objective`)."""

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.training.objectives.finetuning import Finetuning
from mindspeed_llm.training.objectives.objective import Objective
from mindspeed_llm.training.objectives.preference import Preference
from mindspeed_llm.training.objectives.pretraining import Pretraining
from mindspeed_llm.training.reference import load_reference


def objective_of(configs: Configs, state: ParallelState) -> Objective:
    """The objective of a command line."""
    data = configs.data
    if data.is_pairwise_dataset:
        pad_id = load_tokenizer(data.tokenizer_name_or_path, data.tokenizer_type).pad_id
        reference = load_reference(configs, state) if configs.preference.needs_reference else None
        return Preference(configs, pad_id, reference)
    if data.is_instruction_dataset:
        return Finetuning(configs, load_tokenizer(data.tokenizer_name_or_path, data.tokenizer_type).pad_id)
    return Pretraining(configs)
