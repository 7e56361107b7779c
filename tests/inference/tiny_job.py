"""A tiny random GLM4 on disk, with tokenizer and MMLU files: what `inference.py` and `evaluation.py` need to run."""

import csv
from pathlib import Path

import numpy as np

from mindspeed_llm.config.command_line import Configs, parse
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.structure import model_specs
from mindspeed_llm.data.tokenizer_training import train_tiktoken_bpe, write_chatglm_tokenizer
from tests.checkpoint.make_checkpoint import save

MODEL = ModelConfig(num_layers=4, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2,
                    kv_channels=8, padded_vocab_size=352, max_position_embeddings=320)
TEXT = ("The following are multiple choice questions (with answers) about\nA. one\nB. two\nC. three\nD. four\n"
        "Answer: A B C D\n")
SUBJECTS = ("anatomy", "world_religions")
QUESTIONS = 7


def write_job(folder: Path) -> None:
    """Write checkpoint/, tokenizer/ and mmlu/{dev,test}/ into `folder`."""
    rng = np.random.default_rng(5)
    weights = {spec.name: (rng.standard_normal(spec.shape) * 0.25 + (spec.init == "ones")).astype(np.float32)
               for spec in model_specs(MODEL)}
    save(folder / "checkpoint", MODEL, ParallelConfig(), {"weight": weights}, optimizer=False)
    write_chatglm_tokenizer(folder / "tokenizer", train_tiktoken_bpe([TEXT] * 3, 320))
    for split, count in (("dev", 5), ("test", QUESTIONS)):
        (folder / "mmlu" / split).mkdir(parents=True)
        for subject in SUBJECTS:
            write_csv(folder / "mmlu" / split / f"{subject}_{split}.csv",
                      [(f"{subject} {split} {'word ' * number}{number}?", "one", "None", f"NA, {number}", "four",
                        "ABCD"[number % 4]) for number in range(count)])


def write_csv(file: Path, rows: list[tuple[str, ...]]) -> None:
    """Rows as the original MMLU files hold them."""
    with open(file, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


def configs(entrypoint: str, folder: Path, *flags: str) -> Configs:
    """The parsed command line of a job in `folder`."""
    argv = ["--load", str(folder / "checkpoint"), "--tokenizer-name-or-path", str(folder / "tokenizer")]
    if entrypoint == "evaluation":
        argv += ["--task", "mmlu", "--task-data-path", str(folder / "mmlu" / "test")]
    return parse(entrypoint, [*argv, *flags])
