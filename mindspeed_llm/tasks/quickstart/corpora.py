"""Writes the quickstart's data files from an invented world.

    <directory>/pretrain.jsonl             one document per line, {"text": ...}
    <directory>/instructions.json          Alpaca rows {"instruction", "input", "output"} about the tuned names
    <directory>/mmlu/dev/<subject>_dev.csv    five solved questions a subject, about tuned names
    <directory>/mmlu/test/<subject>_test.csv  questions about the held-out names
    <directory>/prompts.txt                beginnings of statements about held-out names, one per line, for generation
    <directory>/pairs.json                 Alpaca rows {"instruction", "chosen", "rejected"} (`write_pairs`)

The CSVs have the original MMLU layout: no header, question, four options, letter.
"""

import csv
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.tasks.evaluation import prompts
from mindspeed_llm.tasks.quickstart.world import KINDS, SUBJECTS, Question, World, documents, questions

DEV_ROWS = 5
GENERATION_PROMPTS = 4


@dataclass(frozen=True)
class Counts:
    """What was written: documents, instruction rows, test questions."""

    documents: int
    instructions: int
    test_questions: int


def instruction_rows(world: World, seed: int) -> list[dict[str, str]]:
    """Alpaca rows about the tuned names in a random order; the prompt is the zero-shot form of the evaluation."""
    rows = [{"instruction": prompts.STANDARD.write(item.subject, [], prompts.Question(item.question, item.options)),
             "input": "", "output": item.answer} for item in questions(world.tuned)]
    random.Random(f"instructions {seed}").shuffle(rows)
    return rows


def preference_rows(world: World, seed: int) -> list[dict[str, str]]:
    """The instruction rows in another order as pairs: the right letter is chosen, a wrong one rejected."""
    rng = random.Random(f"preferences {seed}")
    rows = [{"instruction": row["instruction"], "chosen": row["output"],
             "rejected": rng.choice([letter for letter in "ABCD" if letter != row["output"]])}
            for row in instruction_rows(world, seed)]
    rng.shuffle(rows)
    return rows


def dev_questions(world: World) -> list[Question]:
    """The solved examples: `DEV_ROWS` a subject, kinds in turn, about tuned names only."""
    tuned = world.tuned[:max(DEV_ROWS, len(KINDS))]
    rows = questions(tuned)
    return [item for subject in SUBJECTS
            for item in [row for row in rows if row.subject == subject.title][::len(subject.questions)][:DEV_ROWS]]


def generation_prompts(world: World) -> list[str]:
    """Statements about held-out names, broken off before the fact: a pre-trained model completes them."""
    return [subject.statements[0].split(" {fact}")[0].format(name=thing.name)
            for subject, thing in zip(SUBJECTS, world.held_out)][:GENERATION_PROMPTS]


def write_corpora(directory: str | Path, world: World, seed: int, document_count: int) -> Counts:
    """Writes all files of the module's text into `directory` (made when missing); each appears whole or not at all.

    Args:
        document_count: number of pre-training documents.

    Raises:
        ValueError: when `document_count` is not positive.
    """
    if document_count < 1:
        raise ValueError(f"the number of documents ({document_count}) must be at least 1")
    directory = Path(directory)
    for name in ("mmlu/dev", "mmlu/test"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    texts = documents(world, seed, document_count)
    write_text(directory / "pretrain.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = instruction_rows(world, seed)
    write_text(directory / "instructions.json", json.dumps(rows, indent=1) + "\n")
    test = questions(world.held_out)
    for split, items in (("dev", dev_questions(world)), ("test", test)):
        for subject in SUBJECTS:
            write_text(directory / "mmlu" / split / f"{subject.title}_{split}.csv",
                       _csv([item for item in items if item.subject == subject.title]))
    write_text(directory / "prompts.txt", "".join(prompt + "\n" for prompt in generation_prompts(world)))
    return Counts(len(texts), len(rows), len(test))


def write_pairs(directory: str | Path, world: World, seed: int) -> int:
    """Writes `preference_rows` as pairs.json into `directory` (made when missing); returns how many there are."""
    directory, rows = Path(directory), preference_rows(world, seed)
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "pairs.json", json.dumps(rows, indent=1) + "\n")
    return len(rows)


def tokenizer_texts(world: World, seed: int) -> list[str]:
    """Text to train the tokenizer on: enough of every statement, and the questions about the tuned names."""
    return documents(world, seed, 4 * len(world.things)) + [row["instruction"] for row in instruction_rows(world, seed)]


def _csv(items: list[Question]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for item in items:
        writer.writerow((item.question, *item.options, item.answer))
    return buffer.getvalue()
