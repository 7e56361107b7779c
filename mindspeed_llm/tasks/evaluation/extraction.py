"""Finding the answer in what a model wrote."""

import re

from mindspeed_llm.tasks.evaluation.prompts import Question

_ANSWER_IS = re.compile(r"(?:answer|option|choice)\s*(?:is|:)\s*|答案\s*(?:应该|应)?\s*(?:是|为|选)?\s*[:：]?\s*", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


def after_answer_is(text: str) -> str:
    """What follows the last "answer is" or 答案是 on its line; the whole text where there is none."""
    found = list(_ANSWER_IS.finditer(text))
    return text[found[-1].end():].split("\n")[0].strip() if found else text.strip()


def letter(text: str, question: Question) -> str:
    """The letter of an option: the one after "answer is", else the first that stands by itself; "" for none."""
    alone = re.compile(rf"(?<![A-Za-z])([{question.letters}])(?![A-Za-z])")
    for part in (after_answer_is(text), text):
        if found := alone.search(part):
            return found.group(1)
    return ""


def letter_original(text: str, question: Question) -> str:
    """MindSpeed-LLM's rule: the last letter on the first line that has a full stop after it, else the very first
    character.
    """
    line = text.lstrip()
    found = re.match(rf".*([{question.letters}])\.", line) or re.match(rf"([{question.letters}])", line)
    return found.group(1) if found else ""


def first_capital(text: str, question: Question) -> str:
    """The first capital letter, if it is an option's."""
    found = re.search(r"[A-Z]", text)
    return found.group() if found and found.group() in question.letters else ""


def several_letters(text: str, _question: Question) -> str:
    """The letters of a question that may have several right options, joined: "BD"."""
    found = re.search(r"(?<![A-Za-z])[A-E](?:\s*[,，、]?\s*[A-E])*(?![A-Za-z])", after_answer_is(text))
    return re.sub(r"[^A-E]", "", found.group()) if found else ""


def last_number(text: str, _question: Question) -> str:
    """The last number before the model goes on to a next question."""
    found = _NUMBER.findall(text.split("Question:")[0])
    return plain_number(found[-1]) if found else ""


def number_after_answer_is(text: str, _question: Question) -> str:
    """The number after the first "The answer is"."""
    found = re.search(rf"The answer is\s*({_NUMBER.pattern})", text)
    return plain_number(found.group(1)) if found else ""


def plain_number(text: str) -> str:
    """A number without thousands separators, currency sign and empty decimals: "1,080.00" becomes "1080"."""
    text = text.replace(",", "").replace("$", "")
    return re.sub(r"\.0+$", "", text)


def formula(text: str, _question: Question) -> str:
    """The result of a calculation: what is boxed last, else the last formula between dollar signs, else what follows
    "answer is", else the last number. An equation's right side.
    """
    if (start := text.rfind("\\boxed{")) >= 0:
        return math_text(_braced(text[start + len("\\boxed"):]))
    if found := re.findall(r"\$([^$]+)\$", text):
        return math_text(found[-1])
    if (tail := after_answer_is(text)) != text.strip():
        return math_text(tail)
    found = _NUMBER.findall(text)
    return plain_number(found[-1]) if found else ""


def math_text(text: str) -> str:
    """A formula without dollar signs, spaces, a full stop at its end and what stands left of an equals sign."""
    return re.sub(r"[\s$]", "", text.rsplit("=", 1)[-1]).rstrip(".。")


def _braced(text: str) -> str:
    """The content of the braces that `text` begins with; all that follows where they are not closed."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if not depth:
            return text[1:place]
    return text[1:]
