"""From a question to token ids that end where its answer is due, and the ids of the answers to choose from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.hf_template import HfTemplate
from mindspeed_llm.data.templates import Message, Template
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.tasks.evaluation.prompts import Form, Question
from mindspeed_llm.tasks.evaluation.question_files import Subject


@dataclass(frozen=True)
class Prompt:
    """Token ids up to the answer, and those of each choice that may follow (none: the answer is written freely).

    `shots` solved examples are in it; `cut` says that its beginning had to go.
    """

    ids: list[int]
    continuations: list[list[int]]
    shots: int
    cut: bool = False


class PromptWriter:
    """Token ids of questions in a chat template, the project's or a tokenizer's own, or (None) as plain text.

    Text is cut into tokens together with each choice, so that both are spelled as they are in running text. What all
    choices begin with belongs to the prompt if they differ in one token after it (and end alike, as `(A)` and `(B)`
    do): these tokens then follow one context, and one forward pass rates them all. In a chat template the model's
    answer is the choice alone, so the ids end with what every answer begins with (glm4: a newline); in plain text the
    choice follows after `Form.gap`.

    `room`: tokens that a prompt and its longest choice, or its answer of `new_tokens`, may have.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template | HfTemplate | None, form: Form, room: int,
                 new_tokens: int = 0) -> None:
        self._tokenizer, self._template, self.form = tokenizer, template, form
        self.room, self._new_tokens = room, new_tokens
        self._encode_cached = lru_cache(maxsize=256)(lambda text: tuple(tokenizer.encode(text)))

    @property
    def template_name(self) -> str | None:
        """The chat template's name; None for plain text."""
        return None if self._template is None else self._template.name

    def write(self, subject: Subject, question: Question, rated: bool) -> Prompt:
        """A question with as many of the subject's shots as fit (the first ones go first); `rated`: with its choices.

        A question that is too long by itself loses its beginning (its end, with the options, matters most). Raises
        UserError when the tokenizer spells two choices alike, or when even the answer does not fit.
        """
        for dropped in range(len(subject.shots) + 1):
            shots = subject.shots[dropped:]
            ids, continuations = self._encode(subject.name, shots, question, rated)
            room = self.room - max((len(ids) - 1 for ids in continuations), default=self._new_tokens)
            if len(ids) <= room:
                return Prompt(ids, continuations, len(shots))
        if room < 1:
            raise UserError(f"an answer of {self.room - room} tokens leaves no room for a prompt in a sequence of "
                            f"{self.room}: lower --max-new-tokens or raise --seq-length")
        return Prompt(ids[-room:], continuations, 0, cut=True)

    def _encode(self, subject: str, shots: Sequence[Question], question: Question,
                rated: bool) -> tuple[list[int], list[list[int]]]:
        text = self.form.write(subject, shots, question)
        choices = self.form.choices(question) if rated else ()
        if self._template is None:
            # No token reaches over a line's end, so that only the last line is cut together with each choice, and the
            # solved examples of a subject are cut once.
            start = text.rfind("\n") + 1
            end = min(start, len(text) - len(self.form.question(question)))
            if text[max(0, end - 1):end] != "\n" or text[end:end + 1].isspace():
                end = 0  # white space after a line's end is one token with it
            ids = [*self._tokenizer.bos_prefix, *self._encode_cached(text[:end]),
                   *self._tokenizer.encode(text[end:start])]
            last = self._encode_cached(text[start:])
            answers = [self._encode_cached(text[start:] + self.form.gap + choice) for choice in choices]
        else:
            ids, last = self._template.encode_prompt(self._tokenizer, [Message("user", text)]), ()
            answers = [self._encode_cached(self._template.assistant.replace("{content}", choice)) for choice in choices]
        if not choices:
            return [*ids, *last], []
        if len(set(answers)) < len(answers):
            raise UserError(f"the tokenizer spells two of the choices {', '.join(map(repr, choices))} alike: they "
                            "cannot be told apart")
        shared = common_prefix(answers)
        if len({answer[shared + 1:] for answer in answers}) == 1 and min(map(len, answers)) > shared:
            return [*ids, *answers[0][:shared]], [[answer[shared]] for answer in answers]
        shared = min(shared, len(last), min(map(len, answers)) - 1)
        shared = common_prefix([last[:shared], *answers])
        return [*ids, *answers[0][:shared]], [list(answer[shared:]) for answer in answers]


def common_prefix(lists: Sequence[Sequence[int]]) -> int:
    """How many first entries all `lists` share."""
    if not lists:
        return 0
    low, high = min(lists), max(lists)  # all others lie between these two in lexical order
    for index, (a, b) in enumerate(zip(low, high)):
        if a != b:
            return index
    return min(len(low), len(high))
