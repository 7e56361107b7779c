"""Prompts and tools out of a file (`--prompt-file`, `--tools`), answers into one (`--output`)."""

import json
from pathlib import Path

from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.config.errors import UserError

FORMATS = "a .txt file (a prompt a line) or a .jsonl file (a line a JSON object with the text `prompt`)"


def read_prompts(path: str) -> tuple[str, ...]:
    """The prompts of a file, in order; empty lines are none.

    Raises FileNotFoundError, or UserError naming file and line for what is no prompt.
    """
    file = Path(path)
    if file.suffix not in (".txt", ".jsonl"):
        raise UserError(f"--prompt-file {path}: give {FORMATS}")
    if not file.is_file():
        raise FileNotFoundError(f"--prompt-file {path}: no such file; give {FORMATS}")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file {path} is not UTF-8 ({error.reason} at byte {error.start}): save it as "
                        "UTF-8") from None
    prompts = tuple(line.removesuffix("\r") if file.suffix == ".txt" else _prompt_of(line, f"{path} line {number}")
                    for number, line in enumerate(lines, start=1) if line.strip())
    if not prompts:
        raise UserError(f"--prompt-file {path} holds no prompts: give {FORMATS}")
    return prompts


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        prompt = None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"--prompt-file {where} is no JSON object with a text `prompt` that is not empty")
    return prompt


def read_tools(path: str) -> str:
    """The JSON list of descriptions in a file.

    Raises FileNotFoundError, or UserError naming the file for what is no such list.
    """
    what = ('a JSON list of descriptions such as {"type": "function", "function": {"name": "weather", "parameters": '
            '{"type": "object"}}}')
    if not Path(path).is_file():
        raise FileNotFoundError(f"--tools {path}: no such file; give {what}")
    try:
        tools = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        names = [tool.get("function", tool)["name"] for tool in tools]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        names = []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"--tools {path} does not hold {what}")
    return json.dumps(tools, ensure_ascii=False)


def check_output(path: str) -> None:
    """Raise UserError for an --output that cannot be a file."""
    if Path(path).is_dir():
        raise UserError(f"--output {path} is a directory: name a file in it, such as {Path(path) / 'answers.jsonl'}")


class AnswerFile:
    """Answers as JSON lines, in the order of `add`. At every moment the file holds whole lines, those added so far.

    Its directory is made when missing; an older file is replaced.
    """

    def __init__(self, path: str) -> None:
        self._path, self._lines = Path(path), []

    def add(self, records: list[dict]) -> None:
        """Append records and write the file."""
        self._lines += [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, "".join(self._lines))
