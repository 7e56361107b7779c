"""Small files in the public layouts of the benchmarks (made up, because the sets themselves are not at hand)."""

import csv
import json
from pathlib import Path

CHOICE_HEADER = ["question", "A", "B", "C", "D", "answer"]


def write_lines(file: Path, records: list[dict]) -> None:
    """JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_table(file: Path, rows: list[list[str]]) -> None:
    """CSV."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


def choice_rows(count: int) -> list[list[str]]:
    """Question, four options, letter."""
    return [[f"{number} + 1 = ?", "None", f"{number + 1}", "1.0", "nan", "ABCD"[number % 4]] for number in range(count)]


def write_all(root: Path) -> dict[str, Path]:
    """Files of every benchmark but MMLU below `root`; the directory that --task-data-path names, by benchmark."""
    for split, count in (("dev", 5), ("val", 3)):
        numbered = [[str(number), *row] for number, row in enumerate(choice_rows(count))]
        write_table(root / "ceval" / split / f"law_{split}.csv", [["id", *CHOICE_HEADER], *numbered])
    for split, count in (("dev", 5), ("test", 3)):
        numbered = [[str(number), *row] for number, row in enumerate(choice_rows(count))]
        titles = ["", "Question", "A", "B", "C", "D", "Answer"]
        write_table(root / "cmmlu" / split / "agronomy.csv", [titles, *numbered])
    write_lines(root / "boolq" / "dev.jsonl", [
        {"question": f"is {number} one", "passage": "Answer with one.", "answer": number == 1} for number in range(3)])
    write_lines(root / "hellaswag" / "hellaswag_val.jsonl", [
        {"activity_label": "Choice", "ctx_a": "One question", "ctx_b": "they",
         "endings": ["answer.", "are four [title] answers about one.", "one", "two three."], "label": number}
        for number in range(3)])
    gsm8k = [{"question": f"What is {number} + 1?", "answer": f"<<{number}+1>>One more.\n#### {number + 1},000"}
             for number in range(5)]
    write_lines(root / "gsm8k" / "test.jsonl", gsm8k[:3])
    write_lines(root / "gsm8k" / "train.jsonl", gsm8k)
    for name, targets in (("date_understanding", ["(A)", "(B)"]), ("navigate", ["Yes", "No"])):
        file = root / "bbh" / "bbh" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"canary": "x", "examples": [{"input": f"Question {number}?", "target": target}
                                                                for number, target in enumerate(targets)]}))
        solved = "\n\n".join(f"Q: Question {number}?\nA: Let's think step by step.\nOne way. So the answer is "
                             f"{targets[number % 2]}." for number in range(3))
        (root / "bbh" / "cot-prompts").mkdir(exist_ok=True)
        (root / "bbh" / "cot-prompts" / f"{name}.txt").write_text(f"canary\n-----\nAnswer questions.\n\n{solved}\n")
    write_lines(root / "agieval" / "logiqa-en.jsonl", [
        {"passage": "One.", "question": "Which?", "options": ["(A)one", "(B)two", "(C)four"], "label": "B",
         "answer": None}])
    write_lines(root / "agieval" / "jec-qa-kd.jsonl", [
        {"passage": None, "question": "Which?", "options": ["(A)one", "(B)two"], "label": ["A", "B"], "answer": None}])
    write_lines(root / "agieval" / "math.jsonl", [
        {"passage": None, "question": "1 + 1?", "options": None, "label": None, "answer": "$x = 2$"}])
    write_lines(root / "humaneval" / "HumanEval.jsonl", [
        {"task_id": "HumanEval/0", "prompt": "import math\n\n\ndef one(x):\n    \"\"\"Add one.\"\"\"\n",
         "entry_point": "one", "canonical_solution": "    return x + 1\n",
         "test": "def check(candidate):\n    assert candidate(1) == 2\n"}])
    write_lines(root / "needlebench" / "needles.jsonl", [
        {"needle": f"The {word} is hidden on the island.", "retrieval_question": f"{question}The {word} is",
         "arg2": "island", "language": language}
        for language, word, question in (("English", "gold", "Where? Please answer in the format: "),
                                         ("Chinese", "金", "在哪里？请按照格式回答："))])
    for name in ("PaulGrahamEssays", "zh_finance"):
        write_lines(root / "needlebench" / f"{name}.jsonl", [{"text": f"Essay {number}. " * 200} for number in range(9)])
    inside = {"ceval": "val", "cmmlu": "test", "bbh": "bbh"}
    return {name: root / name / inside.get(name, "") for name in (
        "ceval", "cmmlu", "boolq", "hellaswag", "gsm8k", "bbh", "agieval", "humaneval", "needlebench")}
