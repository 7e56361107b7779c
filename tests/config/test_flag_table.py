"""The flag table is complete, and its documentation up to date."""

from dataclasses import fields
from pathlib import Path

import pytest

from mindspeed_llm.config.flags import CONFIGS, FLAGS, SCRIPTS, default_text, flags_of, reference_page
from mindspeed_llm.config.option import ENTRYPOINTS

ROOT = Path(__file__).parents[2]

# Set by more than one flag, or by none: see command_line._derive and shape.stated_model.
DERIVED = {"train.params_dtype", "convert.stated_model"}


def test_every_config_field_is_set_by_a_flag_or_derived():
    reachable = {target for flag in FLAGS for target in flag.fields if not target.startswith("cli.")}
    declared = {f"{part}.{field.name}" for part, config in CONFIGS.items() for field in fields(config)}
    assert declared - reachable == DERIVED
    assert reachable <= declared


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_row_is_complete(flag):
    assert flag.name.startswith("--") and flag.help and flag.group
    assert flag.used_by and set(flag.used_by) <= set(ENTRYPOINTS)
    assert isinstance(default_text(flag), str)


def test_a_name_has_one_row_per_entrypoint():
    for entrypoint in ENTRYPOINTS:
        names = [flag.name for flag in FLAGS if entrypoint in flag.used_by]
        assert len(names) == len(set(names))
        assert set(flags_of(entrypoint)) == {flag.name for flag in FLAGS}


def test_scripts_exist():
    assert all((ROOT / script).is_file() for script in SCRIPTS.values())


def test_reference_page_is_up_to_date():
    written = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert written == reference_page(), "run: python -m mindspeed_llm.config.flags > docs/flags.md"
