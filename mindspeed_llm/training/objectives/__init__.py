"""What training is for, one file an objective: its samples, its micro-batches, its loss (see `objective.Objective`)."""

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.training.objectives.finetuning import Finetuning
from mindspeed_llm.training.objectives.objective import Objective
from mindspeed_llm.training.objectives.preference import Preference
from mindspeed_llm.training.objectives.pretraining import Pretraining
from mindspeed_llm.training.reference import load_reference
from mindspeed_llm.training.reference_logps import ReferenceLogps


def objective_of(configs: Configs, state: ParallelState) -> Objective:
    """The objective of a command line."""
    data = configs.data
    if data.is_pairwise_dataset:
        pad_id = load_tokenizer(data.tokenizer_name_or_path, data.tokenizer_type).pad_id
        preference, logps, reference = configs.preference, None, None
        if preference.needs_reference and preference.precompute_ref:
            logps = ReferenceLogps(configs, state)
        elif preference.needs_reference and preference.ref_model:
            reference = load_reference(configs, state)
        return Preference(configs, pad_id, reference, logps)
    if data.is_instruction_dataset:
        return Finetuning(configs, load_tokenizer(data.tokenizer_name_or_path, data.tokenizer_type).pad_id)
    return Pretraining(configs)
