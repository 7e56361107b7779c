"""Prompt templates: a conversation to (input_ids, labels), for `--prompt-type`.

The formats are those that users' MindSpeed-LLM and LLaMA-Factory set-ups train with (`templates.json`, names `glm4`,
`alpaca`, `default`), so that a model tuned there and one tuned here are prompted alike.

GLM4 looks like this (marks are special tokens, the rest is text):

    [gMASK]<sop><|system|>\\n{system}<|user|>\\n{question}<|assistant|>\\n{answer}<|user|>\\n{question}<|assistant|>...

Loss is on the assistant's text, with the newline in front of it because the model must generate that too (the prompt
ends with `<|assistant|>`), and on its end mark. End mark for glm4: `<|endoftext|>` after *every* answer. After the last
answer it is in the input as well. Between turns the input has no `<|endoftext|>` (the next turn's mark stands there, as
in GLM4's own chat format), only the label of that position is `<|endoftext|>`. This is what MindSpeed-LLM and
LLaMA-Factory do ("efficient eos"). GLM-4's authors name the three stop tokens `<|endoftext|>` (training), `<|user|>`
(chat) and `<|observation|>` (tool call), https://github.com/zai-org/GLM-4/issues/398. So `<|user|>` and
`<|observation|>` stay stop tokens of generation, but are not trained here; a tool call ends like any answer.

A served conversation (`Template.encode_chat`) is written as the `chat_template` of the models' Hugging Face
repositories has it: glm4 as glm-4-9b-chat, glm4_z1 as GLM-Z1-9B-0414. That differs from the training form in what is
said of tools, which are a system turn of their own before the system prompt, where training joins both in one turn. It
also takes turns that training data never have: several queries or several answers (tool calls) in a row.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.tokenizer import Tokenizer

IGNORE = -100
QUERY_ROLES = ("user", "observation")
ANSWER_ROLES = ("assistant", "function")

GLM4_TOOLS_HEAD = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
GLM4_TOOL = "\n\n## {name}\n\n{body}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
# as Hugging Face renders the models' own templates, which drops a newline after a control block
GLM4_CHAT_TOOL = GLM4_TOOL.removeprefix("\n")
GLM4_CHAT_TOOLS_HEAD = GLM4_TOOLS_HEAD.replace("智谱 AI 公司", "智谱AI")
THOUGHTS_BEGIN, THOUGHTS_END = "<think>", "</think>"    # text, not special tokens


@dataclass(frozen=True)
class Message:
    """One turn. `role`: user, observation (the result of a tool), assistant, function (a tool call, JSON), and, in
    `Template.encode_chat`, system.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Template:
    """How roles are written. `{content}` is replaced by the text; `<|...|>` marks in a format are special tokens.

    Attributes:
        opening: what stands between a query and its answer; a prompt ends with it.
        chat_tools_head: what native tools begin with in a served conversation; in training it is GLM4_TOOLS_HEAD.
        thinking: in a served conversation the model's thoughts come first in its answer, up to THOUGHTS_END; a prompt
            ends with THOUGHTS_BEGIN, and the thoughts of earlier answers are left out.
        separator: text between an answer and the next query.
        end_every_turn: the end-of-text token follows every answer in the input; otherwise only the last one, and labels
            alone carry it between turns (see the module text).
    """

    name: str
    user: str
    opening: str
    assistant: str
    system: str
    observation: str
    function: str = "{content}"
    separator: str = ""
    default_system: str = ""
    end_every_turn: bool = True
    native_tools: bool = False
    chat_tools_head: str = GLM4_CHAT_TOOLS_HEAD
    thinking: bool = False

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message], system: str = "", tools: str = "",
               max_length: int | None = None) -> tuple[list[int], list[int]]:
        """A whole conversation for training.

        Args:
            messages: queries and answers in turn, beginning with a query and ending with an answer.
            system, tools: system prompt, JSON list of tool descriptions; empty for none.
            max_length: longest result. A turn that does not fit is cut at the end of its query and its answer in
                proportion, later turns are dropped; a cut answer gets no end mark, for it did not end there.

        Returns:
            (input_ids, labels), equally long; labels[i] is the token that the model should predict *at position i - 1*
            (the shift by one is the data set's job) or -100.

        Raises:
            UserError: the roles do not alternate, a tool call is no JSON.
        """
        _check_order(messages, training=True)
        limit = max_length if max_length is not None else 1 << 62
        input_ids: list[int] = []
        labels: list[int] = []
        for index in range(0, len(messages), 2):
            query = self._encode_query(tokenizer, messages, index, system, tools)
            answer = self._encode_answer(tokenizer, messages[index + 1])
            last = index + 2 == len(messages)
            end = 1 if last or self.end_every_turn else 0
            room = limit - len(input_ids)
            if room < 2:
                break
            whole = len(query) + len(answer) + end <= room
            if not whole:
                query, answer = _cut(query, answer, room)
            query_labels = [IGNORE] * len(query)
            if input_ids and not self.end_every_turn:
                query_labels[0] = tokenizer.eos_id
            ending = [tokenizer.eos_id] * end if whole else []
            input_ids += query + answer + ending
            labels += query_labels + answer + ending
            if not whole:
                break
        return input_ids, labels

    def encode_prompt(self, tokenizer: Tokenizer, messages: Sequence[Message], system: str = "",
                      tools: str = "") -> list[int]:
        """A conversation that ends with a query, for generation; the ids end where the model's answer begins.

        For glm4 that is after `<|assistant|>`: the answer's first token is the newline.
        """
        _check_order(messages, training=False)
        ids: list[int] = []
        for index in range(0, len(messages), 2):
            ids += self._encode_query(tokenizer, messages, index, system, tools)
            if index + 1 < len(messages):
                ids += self._encode_answer(tokenizer, messages[index + 1])
                ids += [tokenizer.eos_id] if self.end_every_turn else []
        return ids

    def encode_chat(self, tokenizer: Tokenizer, messages: Sequence[Message], tools: str = "",
                    beginning: str = "") -> list[int]:
        """A conversation to answer next, as the model's own chat template writes it (see the module text).

        Args:
            messages: in any order of roles; system turns are moved to the front.
            tools: JSON list of tool descriptions, empty for none.
            beginning: how the answer begins, if the model is not to choose; then there are no thoughts before it.

        Raises:
            UserError: no query, a last message that is none, a tool call that is no JSON, tools in a template that has
                no form for their calls.
        """
        turns = [_without_thoughts(message) if self.thinking else message for message in messages
                 if message.role != "system"]
        if not turns or turns[-1].role not in QUERY_ROLES:
            raise UserError("a conversation must end with a message of the user or the result of a tool")
        if tools and not self.native_tools:
            raise UserError(f"prompt type {self.name} has no form for tool calls: leave the tools out")
        ids = list(tokenizer.bos_prefix)
        if tools:
            ids += _fill(tokenizer, self.system, self._describe_tools(tools, self.chat_tools_head, GLM4_CHAT_TOOL))
        systems = [message.content for message in messages if message.role == "system"]
        for text in systems or [self.default_system]:
            ids += _fill(tokenizer, self.system, text) if text else []
        asked = False   # the turn before was a query, whose text is followed by the opening
        for index, turn in enumerate(turns):
            if turn.role in QUERY_ROLES:
                ids += tokenizer.encode(self.separator) if self.separator and index else []
                asked = index + 1 == len(turns) or turns[index + 1].role not in QUERY_ROLES
                ids += self._encode_asked(tokenizer, turn, self.opening if asked else "")
            else:
                ids += [] if asked else _fill(tokenizer, self.opening, "")
                ids += self._encode_answer(tokenizer, turn) + ([tokenizer.eos_id] if self.end_every_turn else [])
                asked = False
        beginning = beginning or ("\n" + THOUGHTS_BEGIN if self.thinking else "")
        return ids + (tokenizer.encode(beginning) if beginning else [])

    def encode_pair(self, tokenizer: Tokenizer, messages: Sequence[Message], chosen: Message, rejected: Message,
                    system: str = "", tools: str = "", max_length: int | None = None
                    ) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]:
        """The same prompt with two answers, for preference tuning: ((input_ids, labels) chosen, the same rejected).

        Loss is on the last answer only. Both are cut so that the prompt stays the same in both.
        """
        prompt = self.encode_prompt(tokenizer, messages, system, tools)
        limit = max_length if max_length is not None else 1 << 62
        answers = [self._encode_answer(tokenizer, answer) + [tokenizer.eos_id] for answer in (chosen, rejected)]
        longest = max(answers, key=len)
        if len(prompt) + len(longest) > limit:
            prompt, longest = _cut(prompt, longest, limit)
        answers = [answer[:limit - len(prompt)] for answer in answers]
        return tuple((prompt + answer, [IGNORE] * len(prompt) + answer) for answer in answers)

    def _encode_query(self, tokenizer: Tokenizer, messages: Sequence[Message], index: int, system: str,
                      tools: str) -> list[int]:
        ids: list[int] = []
        if index == 0:
            ids += tokenizer.bos_prefix
            system = system or self.default_system
            text = system + self._describe_tools(tools) if tools else system
            if text:
                ids += _fill(tokenizer, self.system, text)
        elif self.separator:
            ids += tokenizer.encode(self.separator)
        return ids + self._encode_asked(tokenizer, messages[index], self.opening)

    def _encode_asked(self, tokenizer: Tokenizer, message: Message, opening: str) -> list[int]:
        form = self.user if message.role == "user" else self.observation
        return _fill(tokenizer, form + opening, message.content)

    def _encode_answer(self, tokenizer: Tokenizer, message: Message) -> list[int]:
        if message.role == "assistant":
            return _fill(tokenizer, self.assistant, message.content)
        return _fill(tokenizer, self.function, self._describe_call(message.content))

    def _describe_tools(self, tools: str, head: str = GLM4_TOOLS_HEAD, form: str = GLM4_TOOL) -> str:
        try:
            described = [tool.get("function", tool) for tool in json.loads(tools)]
            names = [tool["name"] for tool in described]
        except (ValueError, AttributeError, KeyError, TypeError):
            raise UserError("`tools` is not a JSON list of objects that have a `name`") from None
        if not self.native_tools:
            return "\nTools: " + json.dumps(described, ensure_ascii=False)
        return head + "".join(
            form.format(name=name, body=json.dumps(tool, indent=4, ensure_ascii=False))
            for name, tool in zip(names, described)
        )

    def _describe_call(self, content: str) -> str:
        try:
            call = json.loads(content)
            name, arguments = call["name"], call["arguments"]
        except (ValueError, KeyError, TypeError):
            raise UserError('a tool call is not JSON like {"name": ..., "arguments": ...}') from None
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return f"{name}\n{arguments}"


_GLM4 = Template(
    name="glm4",
    user="<|user|>\n{content}",
    opening="<|assistant|>",
    assistant="\n{content}",
    system="<|system|>\n{content}",
    observation="<|observation|>\n{content}",
    end_every_turn=False,
    native_tools=True,
)
TEMPLATES = {
    template.name: template for template in (
        _GLM4,
        replace(_GLM4, name="glm4_z1", chat_tools_head=GLM4_TOOLS_HEAD, thinking=True),
        Template(  # Qwen's; the end of a turn is its end-of-text token
            name="qwen3",
            user="<|im_start|>user\n{content}<|im_end|>\n",
            opening="<|im_start|>assistant\n",
            assistant="{content}",
            system="<|im_start|>system\n{content}<|im_end|>\n",
            observation="<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n",
            separator="\n",
        ),
        Template(
            name="alpaca",
            user="### Instruction:\n{content}\n\n",
            opening="### Response:\n",
            assistant="{content}",
            system="{content}",
            observation="### Observation:\n{content}\n\n",
            separator="\n\n",
            default_system="Below is an instruction that describes a task. "
                           "Write a response that appropriately completes the request.\n\n",
        ),
        Template(
            name="default",
            user="Human: {content}\n",
            opening="Assistant:",
            assistant="{content}",
            system="{content}\n",
            observation="Observation: {content}\n",
            separator="\n",
        ),
    )
}


def get_template(name: str | None) -> Template:
    """The template of `--prompt-type`. Raises UserError for no name or an unknown one."""
    if name is None:
        raise UserError(f"instruction data needs --prompt-type: {', '.join(TEMPLATES)}")
    if name not in TEMPLATES:
        raise UserError(f"--prompt-type {name} is not known: use one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _fill(tokenizer: Tokenizer, form: str, content: str) -> list[int]:
    """Ids of a format with its text put in. Marks are read in the format only, never in the content."""
    ids: list[int] = []
    for part in _split_form(form):
        if part.startswith("<|"):
            ids.append(tokenizer.special(part))
        else:
            ids += tokenizer.encode(part.replace("{content}", content))
    return ids


@functools.cache
def _split_form(form: str) -> list[str]:
    """The marks of a format and the texts between them, none empty."""
    return [part for part in re.split(r"(<\|\w+\|>)", form) if part]


def _without_thoughts(message: Message) -> Message:
    """What GLM-Z1's template takes of a message: what follows its thoughts, without white space around it."""
    if message.role == "function":
        return message
    return replace(message, content=message.content.split(THOUGHTS_END)[-1].strip())


def _cut(query: list[int], answer: list[int], room: int) -> tuple[list[int], list[int]]:
    """Shorten both so that together they fill `room` (>= 2): the answer gets its share of it, at least one token."""
    share = room * len(answer) // (len(query) + len(answer))
    keep = max(1, min(len(answer), max(share, room - len(query))))
    return query[:room - keep], answer[:keep]


def _check_order(messages: Sequence[Message], training: bool) -> None:
    wanted_parity = 0 if training else 1
    if not messages or len(messages) % 2 != wanted_parity:
        ending = "an answer" if training else "a question"
        raise UserError(f"a conversation must begin with a question and end with {ending}; it has {len(messages)} "
                        "messages")
    for position, message in enumerate(messages):
        allowed = ANSWER_ROLES if position % 2 else QUERY_ROLES
        if message.role not in allowed:
            raise UserError(f"message {position + 1} is of {message.role!r}, but it is the turn of "
                            f"{' or '.join(allowed)}")
