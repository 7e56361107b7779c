"""What to make of a row: `--handler-name`. A handler names the columns it needs and turns a row into tokens."""

import json
from collections.abc import Iterable, Sequence

import numpy as np

from mindspeed_llm.config.data import DataConfig
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.templates import ANSWER_ROLES, IGNORE, QUERY_ROLES, Message, get_template
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.tasks.preprocess.columns import ColumnMap

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
         "function_call": "function", "function": "function", "observation": "observation", "tool": "observation"}


class SkipRow(Exception):
    """This row gives no sample; the text says why (rows are counted per reason and reported)."""


class Handler:
    """Base of the handlers.

    Attributes:
        fields: names of the token sequences that `encode` returns; one data set is written for each.
        required: columns every row must have.
        columns: `--map-keys`; `encode` takes rows that it has been applied to.
        infix: what stands between the output prefix and the field's name in the file names.
        instruction: tuning data (with labels, `--prompt-type`, `--pack`) rather than plain text.
    """

    fields: tuple[str, ...]
    required: tuple[str, ...] = ()
    infix = "_packed"
    instruction = True
    can_pack = False

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config = config
        self.tokenizer = tokenizer
        self.template = get_template(config.prompt_type) if self.instruction else None
        self.columns = ColumnMap(config.map_keys)

    def encode(self, row: dict) -> tuple[Sequence[int] | np.ndarray, ...]:
        """One token sequence per field.

        Raises:
            SkipRow: nothing to learn from this row.
            UserError: the row is not what this handler reads.
        """
        raise SkipRow("the base handler reads nothing")


class GeneralPretrainHandler(Handler):
    """Plain text: one document per row and column of `--json-keys`; `--append-eod` adds the end-of-text token."""

    infix = ""
    instruction = False

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        super().__init__(config, tokenizer)
        self.fields = self.required = tuple(config.json_keys)

    def encode(self, row: dict) -> tuple[np.ndarray, ...]:
        documents = self.tokenizer.encode_batch([_text(row, key) for key in self.fields])
        for key, ids in zip(self.fields, documents):
            if not ids.size:
                raise SkipRow(f"no text in column {key!r}")
        if self.config.append_eod:
            documents = [np.append(ids, np.uint32(self.tokenizer.eos_id)) for ids in documents]
        return tuple(documents)


class InstructionHandler(Handler):
    """Conversations to input_ids, attention_mask (all 1; numbered when packed later) and labels."""

    fields = ("input_ids", "attention_mask", "labels")
    can_pack = True

    def conversation(self, row: dict) -> tuple[list[Message], str, str]:
        """(messages that end with an answer, system prompt, tools) of a row."""
        raise SkipRow("the base handler reads nothing")

    def encode(self, row: dict) -> tuple[Sequence[int] | np.ndarray, ...]:
        messages, system, tools = self.conversation(row)
        ids, labels = self.template.encode(self.tokenizer, messages, system, tools, self.config.seq_length)
        if labels.count(IGNORE) == len(labels):
            raise SkipRow("nothing to learn from")
        return ids, np.ones(len(ids), np.int32), labels


class AlpacaStyleInstructionHandler(InstructionHandler):
    """Columns `instruction`, `output`, and if there `input`, `system`, `history` (list of [question, answer])."""

    required = ("instruction", "output")

    def conversation(self, row: dict) -> tuple[list[Message], str, str]:
        messages, system = _alpaca_prompt(row)
        return [*messages, Message("assistant", _answer(row, "output"))], system, _tools(row)


class SharegptStyleInstructionHandler(InstructionHandler):
    """Column `conversations` (list of {from, value}; roles human, gpt, system, function_call, observation), and if
    there `system`, `tools`. Entries may also be named {role, content} and the column `messages`, as in GLM-4's own
    files, where the system message may hold the `tools` and an answer with `metadata` calls the tool of that name."""

    def conversation(self, row: dict) -> tuple[list[Message], str, str]:
        messages, system, tools = _sharegpt_turns(row)
        if messages and messages[-1].role in QUERY_ROLES:
            messages = messages[:-1]  # a question that was never answered
        _check_turns(messages)
        return messages, system, tools


class PairwiseHandler(Handler):
    """A prompt with a better and a worse answer."""

    fields = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")

    def pair(self, row: dict) -> tuple[list[Message], Message, Message, str, str]:
        """(messages that end with a question, chosen answer, rejected answer, system prompt, tools) of a row."""
        raise SkipRow("the base handler reads nothing")

    def encode(self, row: dict) -> tuple[list[int], ...]:
        messages, chosen, rejected, system, tools = self.pair(row)
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            if not answer.content:
                raise SkipRow(f"no answer in column {name!r}")
        better, worse = self.template.encode_pair(self.tokenizer, messages, chosen, rejected, system, tools,
                                                  self.config.seq_length)
        if better == worse:
            raise SkipRow("chosen and rejected answer are equal" + (
                "" if chosen == rejected else f" within --seq-length {self.config.seq_length}"))
        return (*better, *worse)


class AlpacaStylePairwiseHandler(PairwiseHandler):
    """Columns `instruction`, `chosen`, `rejected`, and if there `input`, `system`, `history`."""

    required = ("instruction", "chosen", "rejected")

    def pair(self, row: dict) -> tuple[list[Message], Message, Message, str, str]:
        messages, system = _alpaca_prompt(row)
        answers = [Message("assistant", _text(row, key)) for key in ("chosen", "rejected")]
        return messages, *answers, system, _text(row, "tools")


class SharegptStylePairwiseHandler(PairwiseHandler):
    """Columns `conversations`, `chosen`, `rejected` (each {from, value}), and if there `system`, `tools`."""

    required = ("chosen", "rejected")

    def pair(self, row: dict) -> tuple[list[Message], Message, Message, str, str]:
        messages, system, tools = _sharegpt_turns(row)
        answers = [_message(row[key]) for key in ("chosen", "rejected")]
        for answer in answers:
            _check_turns([*messages, answer])
        return messages, *answers, system, tools


HANDLERS = {handler.__name__: handler for handler in (
    GeneralPretrainHandler, AlpacaStyleInstructionHandler, SharegptStyleInstructionHandler, AlpacaStylePairwiseHandler,
    SharegptStylePairwiseHandler,
)}


def build_handler(config: DataConfig, tokenizer: Tokenizer) -> Handler:
    """The handler of `--handler-name`.

    Raises:
        UserError: an unknown name, no prompt type for tuning data, `--pack` where nothing can be packed.
    """
    if config.handler_name not in HANDLERS:
        raise UserError(f"--handler-name {config.handler_name} is not known: use one of {', '.join(HANDLERS)}")
    handler = HANDLERS[config.handler_name](config, tokenizer)
    if config.pack and not handler.can_pack:
        raise UserError(f"--pack packs conversations into rows; {config.handler_name} has none to pack: leave it out")
    if config.map_keys and not handler.instruction:
        raise UserError(f"--map-keys names the columns of tuning data; {config.handler_name} reads --json-keys")
    for column in handler.required:
        if not handler.columns.name_in_file(column):
            raise UserError(f"--map-keys leaves out the column {column!r}, which {config.handler_name} needs")
    if config.seq_length < 2 and handler.instruction:
        raise UserError(f"--seq-length {config.seq_length}: at least 2 are needed")
    return handler


def _text(row: dict, column: str) -> str:
    """The text of a column; empty when the column is not there or holds null."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"column {column!r} holds {type(value).__name__} ({str(value)[:40]}), text is wanted")
    return value


def _answer(row: dict, column: str) -> str:
    text = _text(row, column)
    if not text:
        raise SkipRow(f"no answer in column {column!r}")
    return text


def _alpaca_prompt(row: dict) -> tuple[list[Message], str]:
    messages = []
    history = row.get("history") or []
    try:
        for question, answer in history:
            messages += [Message("user", question + ""), Message("assistant", answer + "")]
    except (TypeError, ValueError):
        raise UserError(f"column 'history' holds {str(history)[:40]}: a list of [question, answer] is wanted") from None
    question = "\n".join(part for part in (_text(row, "instruction"), _text(row, "input")) if part)
    if not question:
        raise SkipRow("no instruction")
    return [*messages, Message("user", question)], _text(row, "system")


def _sharegpt_turns(row: dict) -> tuple[list[Message], str, str]:
    """(messages without the system prompt, system prompt, tools)."""
    column = next((name for name in ("conversations", "messages") if name in row), None)
    if column is None:
        raise UserError(f"no column 'conversations' or 'messages'; the columns are: {', '.join(row)}")
    turns = row[column]
    if not isinstance(turns, Iterable) or isinstance(turns, (str, dict)):
        raise UserError(f"column {column!r} holds {type(turns).__name__}, a list of turns is wanted")
    turns = list(turns)
    messages = [_message(turn) for turn in turns]
    system, tools = _text(row, "system"), _tools(row)
    if messages and messages[0].role == "system":
        system = system or messages[0].content
        tools = tools or _tools(turns[0])
        messages = messages[1:]
    return messages, system, tools


def _tools(holder: dict) -> str:
    """Tool descriptions of a row or a system message as JSON: they are text, or the list itself."""
    tools = holder.get("tools")
    if isinstance(tools, list):
        return json.dumps(tools, ensure_ascii=False) if tools else ""
    return _text(holder, "tools")


def _message(turn: object) -> Message:
    if not isinstance(turn, dict) or not ({"from", "value"} <= turn.keys() or {"role", "content"} <= turn.keys()):
        raise UserError(f"a turn is {str(turn)[:60]}: an object with 'from' and 'value' (or 'role' and 'content') is "
                        "wanted")
    role, key = (turn["from"], "value") if "from" in turn else (turn["role"], "content")
    if role not in ROLES:
        raise UserError(f"a turn is from {role!r}: known are {', '.join(ROLES)}")
    content = _text(turn, key)
    called = _text(turn, "metadata") if ROLES[role] == "assistant" else ""
    if called:
        return Message("function", json.dumps({"name": called, "arguments": content}, ensure_ascii=False))
    return Message(ROLES[role], content)


def _check_turns(messages: list[Message]) -> None:
    if len(messages) < 2:
        raise SkipRow("no question with an answer")
    for position, message in enumerate(messages):
        if message.role not in (ANSWER_ROLES if position % 2 else QUERY_ROLES):
            raise SkipRow("questions and answers do not take turns")
    if len(messages) % 2:
        raise SkipRow("questions and answers do not take turns")
