"""Questions, and the forms in which they are put to a model.

The form of multiple-choice questions that every part of the project uses is that of the MMLU authors' own evaluation
(Hendrycks et al., 2021, "Measuring Massive Multitask Language Understanding"): a line that names the subject, then
solved questions (the shots), then the question to answer::

    The following are multiple choice questions (with answers) about high school biology.

    {question}
    A. {option}
    B. {option}
    C. {option}
    D. {option}
    Answer:

The evaluation writes its prompts with it, and so does whoever makes instruction data that is to teach the form (the
quickstart): a model tuned on a form that differs in one space is a different measurement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LETTERS = ("A", "B", "C", "D")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

SUBJECT_HEADER = "The following are multiple choice questions (with answers) about {subject}.\n\n"


@dataclass(frozen=True)
class Question:
    """A question, its options (none: the answer is written freely) and the right answer: a letter where it has options.

    details: what a benchmark needs beyond that, by name.
    """

    text: str
    options: tuple[str, ...] = ()
    answer: str = ""
    details: dict[str, str] = field(default_factory=dict)

    @property
    def letters(self) -> str:
        """The letters of its options."""
        return ALPHABET[:len(self.options)]


def letters(question: Question) -> list[str]:
    """The letters of a question's options: what most forms let the model choose from."""
    return list(question.letters)


def subject_title(subject: str) -> str:
    """The subject as a reader writes it: `high_school_biology` (the CSV's stem) becomes `high school biology`."""
    return subject.replace("_", " ").strip()


@dataclass(frozen=True)
class Form:
    """How a question is spelled in a prompt.

    Attributes:
        question: the text of a question up to its answer, without a space at its end: what comes next begins with
            `gap`.
        choices: the answers that the model chooses from, in the order of the letters.
        solution: the answer of a solved example; None: its right choice.
        header: begins the prompt; `{subject}` in it becomes `title(subject)`.
        gap: between a question and its answer in plain text (a chat template has its own).
        separator: after a solved example.
    """

    question: Callable[[Question], str]
    choices: Callable[[Question], Sequence[str]] = letters
    solution: Callable[[Question], str] | None = None
    header: str = ""
    title: Callable[[str], str] = subject_title
    gap: str = " "
    separator: str = "\n\n"

    def write(self, subject: str, shots: Sequence[Question], question: Question) -> str:
        """The whole user message of a question: header, solved examples in this order, the question."""
        solved = "".join(self.question(shot) + self.gap + self._solution(shot) + self.separator for shot in shots)
        return self.header.format(subject=self.title(subject)) + solved + self.question(question)

    def _solution(self, shot: Question) -> str:
        return self.choices(shot)[shot.letters.index(shot.answer)] if self.solution is None else self.solution(shot)


def lettered(question: Question, ending: str = "Answer:") -> str:
    """`{question}`, its options as `A. {option}`, and the ending, each on a line."""
    return "\n".join([question.text, *map("{}. {}".format, question.letters, question.options), ending])


STANDARD = Form(lettered, header=SUBJECT_HEADER)
"""The form of the MMLU authors."""

