"""The bodies of requests: what the OpenAI API has of parameters, as far as they can have their effect here.

A parameter that is unknown, or that asks for what this server has not, is refused; `user`, `metadata` and others of
that kind are taken and do nothing, because clients send them unasked. `top_k` and `repetition_penalty` are additions that
other servers have too. Types are strict: the text "1" is no number.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mindspeed_llm.data.templates import Message

MAX_CHOICES = 16    # `n` and, in completions, prompts times `n`
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Stop = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class _Lenient(_Model):
    """Part of a body that clients send back as they got it, with fields of other servers."""

    model_config = ConfigDict(extra="ignore")


class StreamOptions(_Lenient):
    """Of a streamed answer: whether a last chunk tells the numbers of tokens."""

    include_usage: bool = False


class _Body(_Model):
    """What both endpoints know. None is as good as left out."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-2**63, lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None

    @field_validator("presence_penalty", "frequency_penalty", "logit_bias")
    @classmethod
    def _neutral(cls, value: Any) -> Any:
        if value:
            raise ValueError("is not supported: leave it out (repetition_penalty is)")
        return value

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Of a stream: whether its last chunk tells the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(_Lenient):
    """A piece of a message."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class CalledFunction(_Lenient):
    """A call as the model wrote it; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(_Lenient):
    """A call in an earlier answer."""

    function: CalledFunction


class _Said(_Lenient):
    role: str
    content: Content | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class SystemMessage(_Said):
    """What the model is told."""

    role: Literal["system", "developer"]
    content: Content

    def turns(self) -> list[Message]:
        """As the template wants it."""
        return [Message("system", self.text)]


class UserMessage(_Said):
    """A question."""

    role: Literal["user"]
    content: Content

    def turns(self) -> list[Message]:
        """As the template wants it."""
        return [Message("user", self.text)]


class AssistantMessage(_Said):
    """An earlier answer: text, calls of tools, or both."""

    role: Literal["assistant"]
    tool_calls: list[ToolCall] | None = None

    def turns(self) -> list[Message]:
        """As the template wants it: each call is a turn."""
        said = [Message("assistant", self.text)] if self.text or not self.tool_calls else []
        called = [call.function for call in self.tool_calls or ()]
        return said + [Message("function", json.dumps({"name": function.name, "arguments": function.arguments}))
                       for function in called]


class ToolMessage(_Said):
    """What a call gave. The template has no place for `tool_call_id`: results stand in the order of the calls."""

    role: Literal["tool"]
    content: Content

    def turns(self) -> list[Message]:
        """As the template wants it."""
        return [Message("observation", self.text)]


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Tool(_Lenient):
    """A function that the model may call. The template shows `function` as it was sent."""

    type: Literal["function"]
    function: dict[str, Any]

    @field_validator("function")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        name = value.get("name")
        if not isinstance(name, str) or not _FUNCTION_NAME.fullmatch(name):
            raise ValueError("must have a `name` of up to 64 letters, digits and _ . -")
        return value

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function["name"]


class ChosenFunction(_Lenient):
    """The function that must be called."""

    name: str


class ToolChoice(_Lenient):
    """One tool by its name."""

    type: Literal["function"]
    function: ChosenFunction


class ResponseFormat(_Lenient):
    """Free text: nothing here constrains what the model may say."""

    type: Literal["text"]


class ChatBody(_Body):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    @property
    def limit(self) -> int | None:
        """Longest answer in tokens, if there is a limit."""
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(_Body):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)] | Annotated[
        list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None

    @field_validator("best_of", "echo", "suffix")
    @classmethod
    def _left_out(cls, value: Any) -> Any:
        if value not in (None, False, "", 1):
            raise ValueError("is not supported: leave it out")
        return value

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each prompt, text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt
