"""The text of a multiple-choice question, in the one form that every part of the project uses.

The form is that of the MMLU authors' own evaluation (Hendrycks et al., 2021, "Measuring Massive Multitask Language
Understanding"): a line that names the subject, then solved questions (the shots), then the question to answer::

    The following are multiple choice questions (with answers) about high school biology.

    {question}
    A. {option}
    B. {option}
    C. {option}
    D. {option}
    Answer:

The evaluation writes its prompts with these functions, and so does whoever makes instruction data that is to teach the
form (the quickstart): a model tuned on a form that differs in one space is a different measurement.
"""

from collections.abc import Sequence

LETTERS = ("A", "B", "C", "D")

SUBJECT_HEADER = "The following are multiple choice questions (with answers) about {subject}.\n\n"


def subject_title(subject: str) -> str:
    """The subject as a reader writes it: `high_school_biology` (the CSV's stem) becomes `high school biology`."""
    return subject.replace("_", " ").strip()


def format_question(question: str, options: Sequence[str], answer: str | None = None) -> str:
    """One question with its options.

    Args:
        question: the question's text, used as it is.
        options: the four options, in the order of the letters A to D.
        answer: a letter for a solved question (a shot): the text then ends `Answer: B` and an empty line. `None` for
            the question to be answered: the text then ends `Answer:`, without a space, because the space is part of
            what may come next.

    Raises:
        ValueError: when there are not four options or the answer is not one of the letters.
    """
    if len(options) != len(LETTERS):
        raise ValueError(f"a multiple-choice question needs {len(LETTERS)} options, this one has {len(options)}: "
                         f"{question!r}")
    if answer is not None and answer not in LETTERS:
        raise ValueError(f"the answer {answer!r} is not one of {', '.join(LETTERS)}: {question!r}")
    lines = [question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options)), "Answer:"]
    text = "\n".join(lines)
    return text if answer is None else f"{text} {answer}\n\n"


def format_prompt(subject: str, shots: Sequence[tuple[str, Sequence[str], str]], question: str,
                  options: Sequence[str]) -> str:
    """The whole user message of one evaluated question.

    Args:
        subject: the subject as its CSV is named (`high_school_biology`).
        shots: solved questions `(question, options, letter)` that come first, in this order; empty for zero-shot.
        question: the question to answer.
        options: its four options.

    Raises:
        ValueError: as `format_question`.
    """
    solved = "".join(format_question(*shot) for shot in shots)
    return SUBJECT_HEADER.format(subject=subject_title(subject)) + solved + format_question(question, options)
