"""From the tokens of an answer, as they come, to text: whole characters, ended by stop strings, with its parts told
apart: thoughts, words to the user, calls of tools.
"""

import secrets
from dataclasses import dataclass, field

from mindspeed_llm.data.templates import THOUGHTS_BEGIN, THOUGHTS_END
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.generation.engine import TokenEvent


@dataclass
class CallDelta:
    """A piece of a call of a tool: the first of call `index` has `id` and `name`, all have some of the arguments."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass
class Delta:
    """What became known of an answer. `tokens` are those whose text is out."""

    content: str = ""
    thoughts: str = ""
    calls: list[CallDelta] = field(default_factory=list)
    tokens: list[TokenEvent] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """Where the text of each of `tokens` begins in the answer."""

    def __bool__(self) -> bool:
        return bool(self.content or self.thoughts or self.calls or self.tokens)

    def add_call(self, index: int, arguments: str) -> None:
        """More arguments of a call."""
        if self.calls and self.calls[-1].index == index:
            self.calls[-1].arguments += arguments
        else:
            self.calls.append(CallDelta(index, arguments))


class PlainParts:
    """An answer that has no parts: everything is content."""

    calls = 0
    done = False

    def push(self, text: str, delta: Delta) -> None:
        """Take more text."""
        delta.content += text

    def turn(self, delta: Delta) -> None:
        """The model begins another turn of its own."""

    def finish(self, delta: Delta) -> None:
        """The answer ends here."""


class ChatParts:
    """Tells the parts of a chat answer apart.

    Thoughts stand between THOUGHTS_BEGIN, which may be the prompt's (`thinking`), and THOUGHTS_END. A call is a turn
    whose first line is the name of a tool and whose rest is JSON, GLM-4's form; several calls are several turns. White
    space around all this belongs to the template. `forced` is a tool whose name is the end of the prompt.
    """

    def __init__(self, tools: tuple[str, ...] = (), *, thinking: bool = False, forced: str | None = None,
                 several_calls: bool = True) -> None:
        self._tools, self._several = tools, several_calls
        self._read = self._thoughts if thinking else self._start
        self._held, self._said, self._thought = "", False, False
        self._id_of_forced = forced
        self.calls, self.done = 0, False
        """How many calls there are, and whether what comes now is of no interest."""

    def push(self, text: str, delta: Delta) -> None:
        """Take more text."""
        if self._id_of_forced is not None:
            self._call(self._id_of_forced, delta)
            self._id_of_forced = None
        self._held += text
        while self._read(delta):
            pass

    def turn(self, delta: Delta) -> None:
        """The model begins another turn of its own: it calls one more tool, or calls one after words."""
        self.finish(delta)
        self.done = bool(self.calls) and not self._several
        self._read = self._start

    def finish(self, delta: Delta) -> None:
        """The answer ends here: what was held back is what it looks like."""
        if self._id_of_forced is not None:
            self.push("", delta)
        if self._read == self._thoughts:
            self._think(self._held.rstrip(), delta)
        elif self._read == self._start:
            self._say(self._held, delta)
        self._held = ""

    # The readers take what they can of the held text and say whether another may go on with the rest.

    def _start(self, delta: Delta) -> bool:
        held = self._held = self._held.lstrip()
        if THOUGHTS_BEGIN.startswith(held) or self._may_be_call(held):
            return False
        if held.startswith(THOUGHTS_BEGIN) and not self.calls and not self._said:
            self._held, self._read = held.removeprefix(THOUGHTS_BEGIN), self._thoughts
            return True
        name, _, rest = held.partition("\n")
        if name.strip() in self._tools and rest.lstrip().startswith("{"):
            self._held = rest.lstrip()
            self._call(name.strip(), delta)
        else:
            self._read = self._words
            if self._said:
                self._held = "\n" + held
        return True

    def _may_be_call(self, held: str) -> bool:
        name, line_ended, rest = held.partition("\n")
        if line_ended:
            return name.strip() in self._tools and not rest.strip()
        return any(tool.startswith(name.rstrip()) for tool in self._tools)

    def _thoughts(self, delta: Delta) -> bool:
        thoughts, ended, rest = self._held.partition(THOUGHTS_END)
        if ended:
            self._think(thoughts.rstrip(), delta)
            self._held, self._read = rest, self._start
            return True
        kept = thoughts[:len(thoughts) - _overlap(thoughts, (THOUGHTS_END,))].rstrip()
        self._think(kept, delta)
        self._held = thoughts[len(kept):]
        return False

    def _think(self, text: str, delta: Delta) -> None:
        text = text if self._thought else text.lstrip()
        self._thought = self._thought or bool(text)
        delta.thoughts += text

    def _words(self, delta: Delta) -> bool:
        self._say(self._held, delta)
        self._held = ""
        return False

    def _say(self, text: str, delta: Delta) -> None:
        self._said = self._said or bool(text)
        delta.content += text

    def _call(self, name: str, delta: Delta) -> None:
        delta.calls.append(CallDelta(self.calls, "", "call_" + secrets.token_hex(12), name))
        self.calls += 1
        self._read = self._arguments

    def _arguments(self, delta: Delta) -> bool:
        arguments = self._held.rstrip()
        if arguments:
            delta.add_call(self.calls - 1, arguments)
        self._held = self._held[len(arguments):]
        return False


class AnswerReader:
    """Reads one answer, event by event.

    `turn_mark` is the id of the token with which the model begins a turn of its own. White space at the start of a turn
    of a chat is the template's and hidden from stop strings.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...], parts: PlainParts | ChatParts,
                 turn_mark: int | None = None) -> None:
        self._stream, self._stops, self._parts, self._turn_mark = tokenizer.stream(), stops, parts, turn_mark
        self._at_start = isinstance(parts, ChatParts)
        self._held = ""     # decoded, and maybe the beginning of a stop string
        self._decoded = self._passed = 0    # characters of the answer out of the decoder, past the stop strings
        self._waiting: list[tuple[int, int, TokenEvent]] = []   # start and end of the text of each token held back
        self.stopped = False
        """Whether a stop string has come, or all calls that are wanted: what comes now is no part of the answer."""
        self.tokens = 0

    @property
    def calls(self) -> int:
        """How many calls of tools it has so far."""
        return self._parts.calls

    def push(self, event: TokenEvent) -> Delta:
        """What the next token makes known."""
        delta = Delta()
        if self.stopped:
            return delta
        self.tokens += 1
        if event.token == self._turn_mark:
            self._take(self._stream.finish(), delta)
            self._release(len(self._held), delta)
            self._parts.turn(delta)
            self.stopped, self._at_start = self._parts.done, True
            return delta
        start = self._decoded
        text = self._stream.push(event.token)
        if self._at_start:
            text = text.lstrip()
            self._at_start = not text
        self._waiting.append((start, start + len(text), event))
        self._take(text, delta)
        return delta

    def finish(self) -> Delta:
        """What was held back and is part of the answer after all."""
        delta = Delta()
        if not self.stopped:
            self._take(self._stream.finish(), delta)
            self._release(len(self._held), delta)
        self._parts.finish(delta)
        self._hand_over(len(self._waiting), delta)
        return delta

    def _take(self, text: str, delta: Delta) -> None:
        self._decoded += len(text)
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._release(min(found), delta)
            self._held = ""
            self._waiting = [entry for entry in self._waiting if entry[0] < self._passed]
        else:
            self._release(len(self._held) - _overlap(self._held, self._stops), delta)

    def _release(self, count: int, delta: Delta) -> None:
        text, self._held = self._held[:count], self._held[count:]
        self._passed += count
        if text:
            self._parts.push(text, delta)
        self._hand_over(sum(end <= self._passed for _, end, _ in self._waiting), delta)

    def _hand_over(self, count: int, delta: Delta) -> None:
        delta.tokens += [event for _, _, event in self._waiting[:count]]
        delta.offsets += [start for start, _, _ in self._waiting[:count]]
        del self._waiting[:count]


def _overlap(text: str, wanted: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that is the beginning of one of `wanted`."""
    for length in range(min(len(text), max(map(len, wanted), default=1) - 1), 0, -1):
        if any(one.startswith(text[-length:]) for one in wanted):
            return length
    return 0
