"""What a family of models is, as data."""

from collections.abc import Mapping
from dataclasses import dataclass

from mindspeed_llm.families.weight_map import HfLayout


@dataclass(frozen=True)
class Family:
    """Models that differ in size only.

    layouts: how Hugging Face repositories store them (names, config.json), each for a value of --model-type-hf.
    prompt_type: the template in which they chat (`data/templates.py`). stop_tokens: those that end an answer, the
    end-of-text token first. arguments: the flags that all of them have in common; models: those of each, by the name that
    scripts call it (`MODEL`).
    """

    name: str
    layouts: tuple[HfLayout, ...]
    prompt_type: str
    stop_tokens: tuple[str, ...]
    arguments: str
    models: Mapping[str, str]
