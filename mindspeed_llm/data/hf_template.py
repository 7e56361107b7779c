"""Conversations written by the chat template that comes with a Hugging Face tokenizer (`--hf-chat-template`).

The template is Jinja, out of a directory that anybody may have written: it runs in Jinja's sandbox, where it can reach
nothing but what it is given, and has what templates expect to find in transformers (its documentation, "Chat
templates"): blocks without their white space, loop controls, `raise_exception`, `strftime_now`, `tojson` as it is in
JSON.

What it writes is text; the special tokens in it are tokens. Those that a message contains are the message's text, as in
`Template`: they are marked before the template sees them.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.templates import Message
from mindspeed_llm.data.tokenizer import Tokenizer

_PRIVATE = tuple(map(chr, range(0xE000, 0xF900)))   # without a meaning: one marks a special token in a message
_ROLES = {"function": "assistant"}


class HfTemplate:
    """The chat template in a tokenizer's directory. Raises UserError or FileNotFoundError where none can be used."""

    name = "hf"

    def __init__(self, directory: str) -> None:
        self._where, text, self._names = _find(Path(directory))
        self._compile(text)

    def encode_chat(self, tokenizer: Tokenizer, messages: Sequence[Message], tools: str = "") -> list[int]:
        """A conversation to answer next, as `Template.encode_chat`. Raises UserError where the template refuses it."""
        special = re.compile("|".join(map(re.escape, sorted(tokenizer.special_tokens, key=len, reverse=True))) or "$^")
        said = tools + "".join(message.content for message in messages)
        mark = next(character for character in _PRIVATE if character not in said)

        def marked(text: str) -> str:
            return special.sub(lambda found: found[0][0] + mark + found[0][1:], text)

        def text_ids(text: str) -> list[int]:
            return tokenizer.encode(text.replace(mark, "")) if text else []

        text = self._render([{"role": _ROLES.get(message.role, message.role), "content": marked(message.content)}
                             for message in messages], json.loads(marked(tools)) if tools else None)
        ids: list[int] = []
        start = 0
        for found in special.finditer(text):
            ids += [*text_ids(text[start:found.start()]), tokenizer.special(found[0])]
            start = found.end()
        ids += text_ids(text[start:])
        prefix = tokenizer.bos_prefix
        return ids if ids[:len(prefix)] == prefix else prefix + ids

    def encode_prompt(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """The same as `encode_chat`; see `Template.encode_prompt`."""
        return self.encode_chat(tokenizer, messages)

    @property
    def assistant(self) -> str:
        """An answer after the prompt, `{content}` for its text, as `Template.assistant`: `\\n{content}` of glm4's."""
        question = {"role": "user", "content": "?"}
        asked = self._render([question])
        whole = self._render([question, {"role": "assistant", "content": "{content}"}], asks=False)
        begin = whole.removeprefix(asked).partition("{content}")[0] if whole.startswith(asked) else ""
        return "{content}" if begin.strip() else begin + "{content}"

    def _compile(self, text: str) -> None:
        from jinja2 import TemplateError    # its library, only where it is used
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": raise_exception,
                                "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            self._template, self._error = environment.from_string(text), TemplateError
        except TemplateError as problem:
            raise UserError(f"--hf-chat-template: the template in {self._where} is no Jinja: {problem}") from None

    def _render(self, turns: list[dict], tools: list | None = None, asks: bool = True) -> str:
        try:
            return self._template.render(messages=turns, tools=tools, documents=None, add_generation_prompt=asks,
                                         **self._names)
        except (self._error, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as problem:
            raise UserError(f"--hf-chat-template: the template in {self._where} does not take this conversation: "
                            f"{problem}") from None


def _find(directory: Path) -> tuple[Path, str, dict[str, str]]:
    """Its file, its text, and the texts of `bos_token`, `eos_token` and the like."""
    stated, file = directory / "tokenizer_config.json", directory / "chat_template.jinja"
    config = {}
    if stated.is_file():
        try:
            config = json.loads(stated.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise UserError(f"--hf-chat-template: {stated} is no JSON: {problem}") from None
    config = config if isinstance(config, dict) else {}
    names = {}
    for name, value in config.items():
        value = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(value, str):
            names[name] = value
    if file.is_file():
        return file, file.read_text(encoding="utf-8"), names
    template = config.get("chat_template")
    if isinstance(template, list):      # several, each with its name
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)
                    }.get("default")
    if not isinstance(template, str):
        raise FileNotFoundError(f"--hf-chat-template: {directory} has neither chat_template.jinja nor a "
                                "`chat_template` in tokenizer_config.json: leave the flag out")
    return stated, template, names


def _to_json(value: object, indent: int | None = None, ensure_ascii: bool = False, separators: tuple | None = None,
             sort_keys: bool = False) -> str:
    """Jinja's own escapes what HTML would not take."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)
