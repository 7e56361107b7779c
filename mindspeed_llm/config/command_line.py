"""From a command line to checked configs."""

import argparse
import glob
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from mindspeed_llm.config.configs import Configs
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.flags import CONFIGS, SCRIPTS, default_text, flags_of, nearest_flag
from mindspeed_llm.config.option import Flag
from mindspeed_llm.config.shape import VocabSize, build_model, stated_model
from mindspeed_llm.config.validation import check, check_given, notes_on

PARTS = {"convert": ("convert",), "preprocess": ("data",),
         "pretrain": ("parallel", "optimizer", "lora", "train", "data", "preference", "checkpoint", "profile",
                      "evaluation"),
         "inference": ("parallel", "lora", "train", "data", "checkpoint", "inference", "serve"),
         "evaluation": ("parallel", "lora", "train", "data", "checkpoint", "evaluation")}


def parse(entrypoint: str, argv: list[str], vocab_size_of: VocabSize | None = None) -> Configs:
    """Read `argv` (without the program's name) for one of `option.ENTRYPOINTS`.

    `vocab_size_of` counts the tokenizer's ids from its config; it is called only for training without
    --padded-vocab-size and --vocab-size. Raises UserError naming flag, value and remedy; exits after --help.
    """
    rows = flags_of(entrypoint)
    given = _tokens(entrypoint, rows, argv)
    values: dict[str, dict[str, Any]] = {"cli": {}, **{part: {} for part in CONFIGS}}
    explicit, no_effect, elsewhere = set(), [], []
    for name, raw in given.items():
        flag = rows[name]
        if entrypoint not in flag.used_by:
            elsewhere.append(name)
            continue
        value = _convert(flag, raw)
        if flag.why_ignored is not None:
            no_effect.append(name)
        for target in flag.fields:
            part, field_name = target.split(".")
            if value is not None:
                values[part][field_name] = value
                explicit.add(field_name)
    cli = values["cli"]
    check_given(values["model"], cli)
    _derive(values, explicit)
    stated = values["convert"]["stated_model"] = stated_model(entrypoint, values["model"], cli)
    parts = {part: CONFIGS[part](**values[part]) for part in PARTS[entrypoint]}
    configs = Configs(entrypoint=entrypoint, **parts, stated_model=stated, explicit=frozenset(explicit),
                      vocab_size=cli.get("vocab_size"))
    configs = replace(configs, model=build_model(configs, values["model"], cli, vocab_size_of),
                      notes=_no_effect_note(entrypoint, rows, no_effect, elsewhere) + notes_on(configs))
    if configs.parallel is not None and configs.parallel.tensor_model_parallel_size == 1:
        configs = replace(configs, parallel=replace(configs.parallel, sequence_parallel=False))
    check(configs)
    return configs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _tokens(entrypoint: str, rows: dict[str, Flag], argv: list[str]) -> dict[str, Any]:
    """Split `argv` into {flag name: text or list of texts}, the last of repeated flags winning."""
    parser = _Parser(prog=SCRIPTS[entrypoint], allow_abbrev=False, argument_default=argparse.SUPPRESS,
                     usage="%(prog)s [flags]",
                     epilog="Flags of the other entrypoints are accepted and have no effect here: see docs/flags.md.")
    groups: dict[str, Any] = {}
    for name, flag in rows.items():
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        options: dict[str, Any] = {"action": "append" if flag.kind.append else "store", "dest": name}
        if flag.kind.nargs is not None:
            options["nargs"] = flag.kind.nargs
        if flag.kind.const is not None:
            options["const"] = flag.kind.const
        options["metavar"] = flag.kind.metavar or "true|false"
        options["help"] = argparse.SUPPRESS
        if entrypoint in flag.used_by:
            default = default_text(flag)
            options["help"] = (flag.help + (f" [{default}]" if default else "")).replace("%", "%%")
        groups[flag.group].add_argument(name, **options)
    parsed, extras = parser.parse_known_args(argv)
    for extra in extras:
        if not extra.startswith("-"):
            continue
        nearest = nearest_flag(extra)
        remedy = f"did you mean {nearest}?" if nearest else f"python {SCRIPTS[entrypoint]} --help lists the flags"
        raise UserError(f"unknown flag {extra.split('=')[0]}: {remedy}")
    if extras:
        raise UserError(f"unexpected argument {extras[0]!r}: every value follows its flag; a value with spaces needs "
                        "quotes around it")
    return vars(parsed)


def _convert(flag: Flag, raw: Any) -> Any:
    try:
        return flag.kind.convert(raw)
    except ValueError as problem:
        shown = raw if isinstance(raw, str) else " ".join(raw)
        raise UserError(f"{flag.name} ({shown}) {problem}") from None


def _derive(values: dict[str, dict[str, Any]], explicit: set[str]) -> None:
    """Fill the fields that no single flag sets."""
    cli, data, convert = values["cli"], values["data"], values["convert"]
    for dtype in ("bf16", "fp16"):
        if dtype in cli:
            explicit.add("params_dtype")
        if cli.get(dtype):
            values["train"]["params_dtype"] = dtype
    if "tokenizer_name_or_path" not in data and "tokenizer_model" in cli:
        data["tokenizer_name_or_path"] = str(Path(cli["tokenizer_model"]).parent)
    if "data_path" in data:
        data["data_path"] = _data_paths(data["data_path"])
    # As MindSpeed-LLM documents it: without --hf-dir, --save-dir is the original Hugging Face directory.
    if convert.get("save_model_type") == "hf" and "hf_dir" not in convert and "save_dir" in convert:
        convert.update(hf_dir=convert["save_dir"], save_dir=str(Path(convert["save_dir"]) / "mg2hf"))


def _data_paths(given: tuple[str, ...]) -> tuple[str, ...]:
    """Split one quoted string of paths or weights and paths; a path that has spaces itself is left whole."""
    if len(given) == 1 and len(given[0].split()) > 1 and not glob.glob(glob.escape(given[0]) + "*"):
        return tuple(given[0].split())
    return given


def _no_effect_note(entrypoint: str, rows: dict[str, Flag], ignored: list[str], elsewhere: list[str]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name in ignored:
        reasons.setdefault(rows[name].why_ignored, []).append(name)
    parts = [f"{' '.join(names)} ({why})" for why, names in reasons.items()]
    if elsewhere:
        parts.append(f"{' '.join(elsewhere)} (not used by {SCRIPTS[entrypoint]})")
    return ["accepted without effect: " + "; ".join(parts)] if parts else []
