"""A flag that has an effect sets a field that someone reads: outside `config/`, and in every entrypoint it is said to act in."""

import ast
from dataclasses import fields

import pytest
from config_reads import Scope, Types, reachable, reads, trees

from mindspeed_llm.config.flags import CONFIGS, FLAGS, SCRIPTS

# What these decide is decided in config/: instruction data are needed; the sequence may be no longer than this.
DECIDED_IN_CONFIG = {"train.stage", "model.max_position_embeddings"}


def test_every_field_is_read_outside_config():
    declared = {f"{part}.{field.name}" for part, config in CONFIGS.items() for field in fields(config)}
    assert declared - set().union(*reads().values()) <= DECIDED_IN_CONFIG


@pytest.mark.parametrize("entrypoint", SCRIPTS)
def test_every_flag_acts_where_it_says(entrypoint):
    found = set().union(*(reads()[name] for name in reachable(SCRIPTS[entrypoint])), DECIDED_IN_CONFIG)
    if "convert.stated_model" in found:  # every model field that was given is held against the source's
        found |= {f"model.{field.name}" for field in fields(CONFIGS["model"])}
    silent = [flag.name for flag in FLAGS if entrypoint in flag.used_by and flag.fields
              and not any(target.startswith("cli.") or target in found for target in flag.fields)]
    assert silent == []


def test_every_parameter_is_read():
    """Of functions (methods may owe theirs to an interface): a value that is passed on and never looked at would hide a flag
    without effect from the tests above.
    """
    unused = []
    for module, tree in trees().items():
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef):
                continue
            used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            unused += [f"{module}.{node.name}: {argument.arg}" for argument in (*node.args.args, *node.args.kwonlyargs)
                       if argument.arg not in used and not argument.arg.startswith("_")]
    assert unused == []


def test_reading_something_else_of_that_name_does_not_count():
    source = """
def read(configs: Configs, options, train: TrainConfig):
    data = configs.data
    options.seed, train.lr, data.workers, configs.optimizer.lr
    other = [options.num_shots for _ in train.micro_batch_size]
"""
    found: set[str] = set()
    Scope(Types(), {}, found).visit(ast.parse(source))
    assert found == {"data.workers", "optimizer.lr", "train.micro_batch_size"}
