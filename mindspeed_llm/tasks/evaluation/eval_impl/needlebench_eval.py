"""NeedleBench, its single-needle retrieval: a sentence hidden in a long document, at many depths and lengths (Li et
al., 2024, "NeedleBench: Can LLMs Do Retrieval and Reasoning in 1 Million Context Window?").

Files: `needles.jsonl` of lines `{"needle", "retrieval_question", "arg2", "language"}`, documents from
`PaulGrahamEssays.jsonl` and `zh_finance.jsonl` (`{"text"}`). Which lengths are taken follows from --seq-length (4096,
8192, 32768, 131072). Tokens are counted with the model's own tokenizer (MindSpeed-LLM counts with cl100k_base, which
must be fetched from the network). A subject is a document, a length and a depth in percent.
"""

import random
import re

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.tasks.evaluation.prompts import Form, Question
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject, field_text, read_json_lines
from mindspeed_llm.tasks.evaluation.task import Task

REPEATS = 10   # questions of each subject
MARGINS = {"PaulGrahamEssays": ("English", {4: 600, 8: 600, 32: 3000, 128: 600}),
           "zh_finance": ("Chinese", {4: 200, 8: 200, 32: 200, 128: 200})}  # tokens left free for question and answer
LENGTHS = {4: range(1000, 5000, 1000), 8: range(5000, 9000, 1000),
           32: (9000, 13000, 17000, 21000, 25000, 29000, 31000, 32000), 128: range(16000, 129000, 16000)}
_FINE, _COARSE = [100 * step / 19 for step in range(20)], [0, 10, 21, 31, 42, 52, 63, 73, 84, 94, 100]
REQUESTS = {
    "English": ("You are an intelligent AI assistant skilled in answering user questions.\nPlease keep your answers "
                "concise and clear. Do not talk about irrelevant topics or repeat your answers.\nThe document given to "
                "you by the user is {document}\n\nNow, the question is: {question}", "Please answer in the format",
                "Before answering, please consider what in the document is most relevant to this question. "),
    "Chinese": ("你是一个善于回答用户问题的智能AI助手\n请保持你的回答简洁清楚。不要说和下面文档中的无关的话，或重复你的回答\n"
                "用户现在给你的文档是{document}\n\n现在请问：{question}", "请按照",
                "在回答之前，请思考文档中与此问题最相关的内容是什么。")}


def read(source: Source) -> list[Subject]:
    """See `Task.read`."""
    size = (source.max_length or 0) // 1024
    if size not in LENGTHS:
        raise UserError(f"--seq-length ({source.max_length}) must be one of "
                        f"{', '.join(str(n * 1024) for n in LENGTHS)} for --task needlebench")
    (needle_file,) = source.files("needles.jsonl", hint="give NeedleBench's directory")
    needles = read_json_lines(needle_file, lambda record: Question(
        field_text(record, "needle"), answer=field_text(record, "arg2"),
        details={name: field_text(record, name) for name in ("retrieval_question", "language")}))
    tokenizer, subjects = source.tokenizer(), []
    for name, (language, margins) in MARGINS.items():
        (file,) = source.files(f"{name}.jsonl", hint="give NeedleBench's directory")
        documents = read_json_lines(file, lambda record: Question(field_text(record, "text")))
        texts = [document.text for document in documents]
        pool = [needle for needle in needles if needle.details["language"] == language]
        if not pool:
            raise UserError(f"{needle_file} has no needle of the language {language}")
        count = min(REPEATS, source.max_samples or REPEATS)
        for length in LENGTHS[size]:
            filled = [_filled(tokenizer, texts, pool, number, length - margins[size]) for number in range(count)]
            subjects += [Subject(f"{name}_{length}_{depth:g}", tuple(
                _question(tokenizer, needle, document, depth, language) for needle, document in filled))
                for depth in (_FINE if size < 32 else _COARSE)]
    return subjects


def _filled(tokenizer: Tokenizer, texts: list[str], needles: list[Question], number: int,
            length: int) -> tuple[Question, list[int]]:
    """A needle, and a document of so many tokens less the needle's, out of the texts in an order of its own."""
    chance = random.Random(number)
    order, needle = chance.sample(texts, len(texts)), chance.choice(needles)
    room, ids = max(0, length - len(tokenizer.encode(f"\n{needle.text}\n"))), []
    for text in order:
        if len(ids) >= room:
            break
        ids += tokenizer.encode(text)
    return needle, ids[:room]


def _question(tokenizer: Tokenizer, needle: Question, document: list[int], depth: float, language: str) -> Question:
    place = int(len(document) * depth / 100)
    text = tokenizer.decode(document[:place]) + f"\n{needle.text}\n" + tokenizer.decode(document[place:])
    frame, ending, advice = REQUESTS[language]
    asked, mark, form = needle.details["retrieval_question"].partition(ending)
    asked += advice + mark + form if mark else ""
    return Question(frame.format(document=text, question=asked), answer=needle.text, details={"keyword": needle.answer})


def judge(answer: str, question: Question) -> float:
    """1.0 when the keyword is in the answer; else a fifth of its likeness to the needle (1 - Levenshtein distance /
    length of the longer one, spaces aside).
    """
    if question.details["keyword"] in answer:
        return 1.0
    given, wanted = (re.sub(r"\s+", "", text) for text in (answer, question.answer))
    given = given[:int(1.2 * len(wanted))]
    longer = max(len(given), len(wanted))
    return 0.2 * (1 - _distance(given, wanted) / longer) if longer else 0.2


def _distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for place, char in enumerate(a, start=1):
        above, row[0] = row[0], place
        for column, other in enumerate(b, start=1):
            above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (char != other))
    return row[-1]


TASK = Task("needlebench", __name__, read, {"": Form(lambda question: question.text)}, scoring="generate",
            max_new_tokens=64, judge=judge,
            subject_line="{subject}: correct: {right}, questions: {questions}, score: {acc}",
            total_line="correct_total: {right}, sum_total: {questions}, score: {acc}",
            time_line="NeedleBench_eval Running Time: {seconds}")
