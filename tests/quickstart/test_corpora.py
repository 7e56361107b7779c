import csv
import json

import pytest

from mindspeed_llm.tasks.evaluation.prompts import STANDARD, Question
from mindspeed_llm.tasks.quickstart.corpora import tokenizer_texts, write_corpora
from mindspeed_llm.tasks.quickstart.world import make_world


@pytest.fixture(scope="module")
def world():
    return make_world(1)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpora")
    write_corpora(path, world, 1, 400)
    return path


def _rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_counts_and_no_leftovers(folder, world, tmp_path):
    counts = write_corpora(tmp_path, world, 1, 10)
    assert (counts.documents, counts.instructions, counts.test_questions) == (10, 576, 384)
    assert sorted(path.name for path in folder.iterdir()) == ["instructions.json", "mmlu", "pretrain.jsonl",
                                                             "prompts.txt"]
    assert not list(folder.rglob("*.tmp"))


def test_same_seed_same_bytes(folder, world, tmp_path):
    write_corpora(tmp_path, world, 1, 400)
    for path in folder.rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()


def test_pretraining_states_every_name(folder, world):
    texts = [json.loads(line)["text"] for line in (folder / "pretrain.jsonl").read_text().splitlines()]
    assert len(texts) == 400
    everything = " ".join(texts)
    assert all(everything.count(thing.name) >= 10 for thing in world.things)


def test_no_letter_is_taught_before_tuning(folder):
    assert "Answer" not in (folder / "pretrain.jsonl").read_text()


def test_no_test_name_in_instructions_or_dev(folder, world):
    dev = "".join(path.read_text() for path in (folder / "mmlu/dev").iterdir())
    taught = (folder / "instructions.json").read_text() + dev
    test = "".join(path.read_text() for path in (folder / "mmlu/test").iterdir())
    assert not [thing.name for thing in world.held_out if thing.name.lower() in taught.lower()]
    assert all(thing.name in test for thing in world.held_out)
    assert not [thing.name for thing in world.tuned if thing.name.lower() in test.lower()]


def test_csv_layout(folder):
    dev = sorted(path.name for path in (folder / "mmlu/dev").iterdir())
    test = sorted(path.name for path in (folder / "mmlu/test").iterdir())
    assert dev == [name.replace("_test", "_dev") for name in test]
    assert len(test) >= 3
    for name in dev:
        assert len(_rows(folder / "mmlu/dev" / name)) == 5
    total = 0
    for name in test:
        rows = _rows(folder / "mmlu/test" / name)
        assert all(len(row) == 6 and row[5] in "ABCD" and row[0].endswith("?") for row in rows)
        assert len({tuple(row[1:5]) for row in rows}) == 1
        total += len(rows)
    assert total >= 300


def test_instructions_use_the_evaluation_prompt(folder, world):
    """A row's text is what the evaluation would write for that question, byte for byte."""
    row = json.loads((folder / "instructions.json").read_text())[0]
    assert set(row) == {"instruction", "input", "output"} and row["input"] == "" and row["output"] in "ABCD"
    header, question, *options, last = row["instruction"].replace("\n\n", "\n").split("\n")
    subject = header.removesuffix(".").rsplit(" ", 1)[1]
    assert last == "Answer:"
    rebuilt = STANDARD.write(subject, [], Question(question, tuple(option[3:] for option in options)))
    assert rebuilt == row["instruction"]
    assert (folder / "mmlu/test" / f"{subject}_test.csv").is_file()


def test_generation_prompts_break_off_before_a_fact(folder, world):
    prompts = (folder / "prompts.txt").read_text().splitlines()
    texts = (folder / "pretrain.jsonl").read_text()
    assert len(prompts) == 4
    for prompt in prompts:
        assert any(thing.name in prompt for thing in world.held_out)
        assert f"{prompt} " in texts


def test_tokenizer_text_holds_all_names_and_forms(world):
    texts = " ".join(tokenizer_texts(world, 1))
    assert all(thing.name in texts for thing in world.things)
    assert "multiple choice questions" in texts


def test_document_count_must_be_positive(world, tmp_path):
    with pytest.raises(ValueError, match=r"documents \(0\)"):
        write_corpora(tmp_path, world, 1, 0)
    assert not list(tmp_path.iterdir())
