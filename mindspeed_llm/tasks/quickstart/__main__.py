r"""The quickstart's generators and its report.

    python -m mindspeed_llm.tasks.quickstart make-data --save-dir quickstart/data --seed 1
    python -m mindspeed_llm.tasks.quickstart make-model --save-dir quickstart/model_from_hf --seed 1 \
        --num-layers 4 --hidden-size 128 ... (the model flags of pretrain_gpt.py)
    python -m mindspeed_llm.tasks.quickstart report --save-dir quickstart --times quickstart/times.tsv \
        --pretrain-log ... --tune-log ... --before-log ... --after-log ... --generate-log ...
    python -m mindspeed_llm.tasks.quickstart compare --full-log ... --lora-log ... --within 0.05
    python -m mindspeed_llm.tasks.quickstart make-pairs --save-dir quickstart/data
    python -m mindspeed_llm.tasks.quickstart preferences --dpo-log ... --before-log ... --after-log ...
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from mindspeed_llm.config.errors import UserError, run_main


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (python -m mindspeed_llm.tasks.quickstart "
                        "{make-data,make-model,make-pairs,report,compare,preferences} --help)")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m mindspeed_llm.tasks.quickstart", description=__doc__, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("make-data", allow_abbrev=False, help="write the invented world's texts and questions")
    model = commands.add_parser("make-model", allow_abbrev=False, help="write a tiny GLM4 in the ChatGLM layout; "
                                "further flags are the model flags of pretrain_gpt.py")
    pairs = commands.add_parser("make-pairs", allow_abbrev=False, help="write pairs of a right and a wrong answer "
                                "about the world of make-data as pairs.json")
    for command in (data, model, pairs):
        command.add_argument("--save-dir", type=Path, required=True, help="directory to write")
        command.add_argument("--seed", type=int, default=1, help="decides names, texts and weights [1]")
        command.add_argument("--names-per-kind", type=int, default=30, help="a quarter of all names [30]")
        command.add_argument("--held-out-per-kind", type=int, default=12,
                             help="of them, those only the test asks about [12]")
    data.add_argument("--documents", type=int, default=4400, help="pre-training documents of about 120 tokens [4400]")
    model.add_argument("--shards", type=int, default=2, help="safetensors files [2]")
    report = commands.add_parser("report", allow_abbrev=False, help="print the summary, write report.md and loss.png")
    report.add_argument("--save-dir", type=Path, required=True, help="directory to write")
    for name, text in (("times", "file of lines 'job<TAB>seconds'"), ("pretrain-log", "log of pre-training"),
                       ("tune-log", "log of fine-tuning"), ("before-log", "log of the evaluation before fine-tuning"),
                       ("after-log", "log of the evaluation after fine-tuning")):
        report.add_argument(f"--{name}", type=Path, required=True, help=text)
    report.add_argument("--generate-log", type=Path, help="log of the generation, for samples")
    report.add_argument("--most-before", type=float, help="fail when the accuracy before fine-tuning is above this")
    report.add_argument("--least-after", type=float, help="fail when the accuracy after fine-tuning is below this")
    compare = commands.add_parser("compare", allow_abbrev=False, help="print the accuracies of full tuning and of adapters")
    compare.add_argument("--full-log", type=Path, required=True, help="log of the evaluation of the fully tuned model")
    compare.add_argument("--lora-log", type=Path, required=True, help="log of the evaluation with low-rank adapters")
    compare.add_argument("--within", type=float, help="fail when the adapters' accuracy is lower by more than this")
    preferences = commands.add_parser("preferences", allow_abbrev=False, help="print what preference tuning reached")
    for name, text in (("dpo-log", "log of preference tuning"), ("before-log", "log of the evaluation before it"),
                       ("after-log", "log of the evaluation after it")):
        preferences.add_argument(f"--{name}", type=Path, required=True, help=text)
    preferences.add_argument("--least-reward", type=float, help="fail when the reward accuracy is below this")
    preferences.add_argument("--within", type=float, help="fail when the evaluation lost more accuracy than this")
    return parser


def _make_data(options: argparse.Namespace) -> None:
    from mindspeed_llm.tasks.quickstart.corpora import write_corpora
    from mindspeed_llm.tasks.quickstart.world import make_world

    world = make_world(options.seed, options.names_per_kind, options.held_out_per_kind)
    counts = write_corpora(options.save_dir, world, options.seed, options.documents)
    print(f"wrote {counts.documents} documents about {len(world.things)} names, {counts.instructions} instruction rows "
          f"about {len(world.tuned)} of them, {counts.test_questions} test questions about the other "
          f"{len(world.held_out)} to {options.save_dir}")


def _make_model(options: argparse.Namespace, model_flags: list[str]) -> None:
    from mindspeed_llm.config.command_line import parse
    from mindspeed_llm.tasks.quickstart.corpora import tokenizer_texts
    from mindspeed_llm.tasks.quickstart.tiny_model import write_tiny_model
    from mindspeed_llm.tasks.quickstart.world import make_world

    place = str(options.save_dir)  # inference is the entrypoint that takes all model flags and needs no training flags
    model = parse("inference", [*model_flags, "--tokenizer-name-or-path", place, "--load", place]).model
    if model is None:
        raise UserError("make-model needs the model flags of pretrain_gpt.py, --padded-vocab-size included")
    world = make_world(options.seed, options.names_per_kind, options.held_out_per_kind)
    used = write_tiny_model(options.save_dir, model, tokenizer_texts(world, options.seed), options.seed, options.shards)
    print(f"wrote a GLM4 of {model.num_layers} layers, hidden size {model.hidden_size}, {used} of "
          f"{model.padded_vocab_size} vocabulary rows in use, to {options.save_dir}")


def _make_pairs(options: argparse.Namespace) -> None:
    from mindspeed_llm.tasks.quickstart.corpora import write_pairs
    from mindspeed_llm.tasks.quickstart.world import make_world

    world = make_world(options.seed, options.names_per_kind, options.held_out_per_kind)
    count = write_pairs(options.save_dir, world, options.seed)
    print(f"wrote {count} pairs of answers about {len(world.tuned)} names to {options.save_dir}")


def _report(options: argparse.Namespace) -> None:
    from mindspeed_llm.tasks.quickstart.report import check_accuracy, collect, summary_lines, write_report

    results = collect(options.pretrain_log, options.tune_log, options.before_log, options.after_log, options.times,
                      options.generate_log)
    path = write_report(options.save_dir, results)
    print("\n".join(summary_lines(results)))
    print(f"report: {path}")
    check_accuracy(results, options.most_before, options.least_after)


def _compare(options: argparse.Namespace) -> None:
    from mindspeed_llm.tasks.quickstart.logs import read_accuracy
    from mindspeed_llm.tasks.quickstart.report import check_adapters

    full, adapters = read_accuracy(options.full_log), read_accuracy(options.lora_log)
    print(f"accuracy after full fine-tuning: {full.share:.2f}\naccuracy with low-rank adapters: {adapters.share:.2f}")
    check_adapters(full, adapters, options.within)


def _preferences(options: argparse.Namespace) -> None:
    from mindspeed_llm.tasks.quickstart.logs import read_accuracy, read_reward_accuracy
    from mindspeed_llm.tasks.quickstart.report import check_preferences

    reward = read_reward_accuracy(options.dpo_log)
    before, after = read_accuracy(options.before_log), read_accuracy(options.after_log)
    print(f"reward accuracy: {reward:.2f}\naccuracy before preference tuning: {before.share:.2f}\n"
          f"accuracy after preference tuning: {after.share:.2f}")
    check_preferences(reward, before, after, options.least_reward, options.within)


def main(argv: list[str] | None = None) -> None:
    """Runs one sub-command. Raises UserError for a wrong command line."""
    options, rest = _build_parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    if options.command == "make-model":
        _make_model(options, rest)
        return
    if rest:
        raise UserError(f"unknown argument {rest[0]!r} of {options.command}: see --help")
    if options.command == "make-data":
        _make_data(options)
    elif options.command == "make-pairs":
        _make_pairs(options)
    elif options.command == "compare":
        _compare(options)
    elif options.command == "preferences":
        _preferences(options)
    else:
        _report(options)


if __name__ == "__main__":
    run_main(main)
