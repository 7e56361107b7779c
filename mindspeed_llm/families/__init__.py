"""The families of models that this project knows: everything that is a family's own, and no code that another shares."""

from collections.abc import Container

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.families import glm, glm4, qwen3
from mindspeed_llm.families.family import Family
from mindspeed_llm.families.weight_map import HfLayout

FAMILIES = (glm.FAMILY, glm4.FAMILY, qwen3.FAMILY)
LAYOUTS: dict[str, HfLayout] = {layout.flag: layout for family in FAMILIES for layout in family.layouts}


def find_layout(flag: str) -> HfLayout:
    """The layout of a --model-type-hf value. Raises UserError naming the allowed ones."""
    if flag not in LAYOUTS:
        raise UserError(f"--model-type-hf ({flag}) must be one of {', '.join(LAYOUTS)}")
    return LAYOUTS[flag]


def of_tokens(special_tokens: Container[str]) -> Family | None:
    """The first family all of whose stop tokens a tokenizer has."""
    return next((family for family in FAMILIES if all(token in special_tokens for token in family.stop_tokens)), None)


def model_arguments(name: str) -> list[str]:
    """The flags of the model that scripts call `name`. Raises UserError naming the known ones."""
    for family in FAMILIES:
        if name in family.models:
            return f"{family.arguments} {family.models[name]}".split()
    known = [model for family in FAMILIES for model in family.models]
    raise UserError(f"MODEL ({name}) must be {', '.join(known[:-1])} or {known[-1]}")
