"""The model's shape: from flags, from a checkpoint, and what happens when they meet."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.model import SHAPE_FIELDS, VOCAB_DIVISOR, ModelConfig
from mindspeed_llm.config.option import flag_name
from mindspeed_llm.config.validation import check

VocabSize = Callable[[DataConfig], int]

_SWITCHES = tuple(field.name for field in fields(ModelConfig) if field.type is bool)
_NEEDED = ("num_layers", "hidden_size", "num_attention_heads")


def pad_vocab(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """`vocab_size` rounded up to a multiple of `divisible_by` x `tensor_parallel_size` (Megatron-LM's rule)."""
    multiple = divisible_by * tensor_parallel_size
    return -(-vocab_size // multiple) * multiple


def stated_model(entrypoint: str, given: dict[str, Any], cli: dict[str, Any]) -> dict[str, Any]:
    """The model fields that a command line fixes, to be held against a checkpoint's.

    For training an absent switch (--add-qkv-bias, --group-query-attention, ...) fixes its field too: there the flags
    give the shape. Elsewhere only what was written counts.
    """
    stated = dict(given)
    if entrypoint == "pretrain":
        for name in _SWITCHES:
            stated.setdefault(name, False)
        if "num_attention_heads" in given:
            stated.setdefault("num_query_groups", _query_groups(given, cli))
    return stated


def _query_groups(given: dict[str, Any], cli: dict[str, Any]) -> int:
    """What holds without --num-query-groups (Megatron-LM's rule)."""
    return 1 if cli.get("group_query_attention") else given["num_attention_heads"]


def build_model(configs: Configs, given: dict[str, Any], cli: dict[str, Any],
                vocab_size_of: VocabSize | None) -> ModelConfig | None:
    """The model that the flags alone describe; None where they do not and need not describe one.

    Raises UserError when training lacks a shape flag, or no vocabulary size is known.
    """
    training = configs.entrypoint == "pretrain"
    if configs.parallel is None:
        return None
    missing = [flag_name(name) for name in _NEEDED if name not in given]
    if missing:
        if not training:
            return None
        raise UserError(f"{', '.join(missing)} must be given for training: model flags give the shape")
    if not training and "padded_vocab_size" not in given and "vocab_size" not in cli:
        return None
    heads, hidden = given["num_attention_heads"], given["hidden_size"]
    if "kv_channels" not in given and hidden % heads:
        raise UserError(f"--hidden-size ({hidden}) must be divisible by --num-attention-heads ({heads}), or give "
                        "--kv-channels")
    values = {"ffn_hidden_size": 4 * hidden, "kv_channels": hidden // heads,
              "num_query_groups": _query_groups(given, cli),
              "max_position_embeddings": configs.train.seq_length, **dict.fromkeys(_SWITCHES, False), **given}
    if "padded_vocab_size" not in values:
        values["padded_vocab_size"] = pad_vocab(_vocab_size(configs, cli, vocab_size_of),
                                                cli.get("make_vocab_size_divisible_by", VOCAB_DIVISOR),
                                                configs.parallel.tensor_model_parallel_size)
    return ModelConfig(**values)


def _vocab_size(configs: Configs, cli: dict[str, Any], vocab_size_of: VocabSize | None) -> int:
    if "vocab_size" in cli:
        return cli["vocab_size"]
    if vocab_size_of is None or configs.data.tokenizer_name_or_path is None:
        raise UserError("the size of the vocabulary is not known: give --padded-vocab-size, --vocab-size, or a "
                        "tokenizer with --tokenizer-name-or-path")
    return vocab_size_of(configs.data)


def merge_model(stated: dict[str, Any], stored: ModelConfig, source: str) -> tuple[ModelConfig, list[str]]:
    """The model of a checkpoint with what the command line says about it.

    Args:
        stated: model fields fixed by flags (`Configs.stated_model`, `ConvertConfig.stated_model`).
        stored: the shape that the checkpoint records.
        source: the checkpoint's path, for messages.

    Returns the model and a note for every override (`OVERRIDABLE_FIELDS`).
    Raises UserError when a shape flag contradicts the checkpoint.
    """
    overrides, notes = {}, []
    for name, value in stated.items():
        known = getattr(stored, name)
        if value == known:
            continue
        if name in SHAPE_FIELDS:
            raise UserError(_contradiction(name, value, known, source))
        overrides[name] = value
        notes.append(f"{flag_name(name)} {value} overrides {known} of {source}")
    return replace(stored, **overrides), notes


def _contradiction(name: str, value: Any, known: Any, source: str) -> str:
    flag = flag_name(name)
    if isinstance(known, bool):
        said = "is given" if value else "is not given"
        has = "has it" if known else "does not have it"
        return f"{flag} {said}, but the checkpoint {source} {has}: {'add' if known else 'remove'} the flag"
    remedy = f"use {known} or leave the flag out"
    if name == "num_query_groups":
        remedy = f"use --group-query-attention --num-query-groups {known}"
    return f"{flag} ({value}) contradicts the checkpoint {source}, which has {known}: {remedy}"


def require_noop_layers(asked: tuple[int, ...], stored: tuple[int, ...], source: str) -> None:
    """Raise UserError unless `--noop-layers` names the layers for which the checkpoint `source` holds no weights."""
    if set(asked) == set(stored):
        return
    said, have = (",".join(map(str, sorted(set(layers)))) for layers in (asked, stored))
    raise UserError(f"--noop-layers ({said or 'none'}) contradicts the checkpoint {source}, which has {have or 'none'}: "
                    f"{f'use --noop-layers {have}' if have else 'leave the flag out'}")


def resolve(configs: Configs, stored: ModelConfig, source: str, noop_layers: tuple[int, ...] = ()) -> Configs:
    """`configs` for a run from the checkpoint `source`: its model and no-op layers set, checked, with notes.

    `stored` and `noop_layers` are what the checkpoint records. For training --noop-layers must name the same layers, as
    there the flags give the shape; elsewhere it may be left out. When generating or evaluating without --seq-length the
    sequence may be as long as the model allows. Raises UserError as `merge_model` and `validation.check` do, and when
    --vocab-size is more than the checkpoint's padded vocabulary.
    """
    model, notes = merge_model(configs.stated_model, stored, source)
    if configs.vocab_size is not None and configs.vocab_size > model.padded_vocab_size:
        raise UserError(f"--vocab-size ({configs.vocab_size}) contradicts the checkpoint {source}, whose embedding has "
                        f"{model.padded_vocab_size} rows, padding included: use its own size or leave the flag out")
    if configs.entrypoint == "pretrain" or "noop_layers" in configs.explicit:
        require_noop_layers(configs.parallel.noop_layers, noop_layers, source)
    else:
        configs = replace(configs, parallel=replace(configs.parallel, noop_layers=noop_layers))
    if configs.entrypoint != "pretrain" and "seq_length" not in configs.explicit:
        length = model.max_position_embeddings
        configs = replace(configs, train=replace(configs.train, seq_length=length),
                          data=replace(configs.data, seq_length=length))
    configs = replace(configs, model=model, notes=configs.notes + notes)
    check(configs)
    return configs
