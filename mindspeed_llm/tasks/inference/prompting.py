"""From what the user says to token ids."""

from collections.abc import Sequence

from mindspeed_llm.config.command_line import Configs
from mindspeed_llm.data.hf_template import HfTemplate
from mindspeed_llm.data.templates import Message, Template, get_template
from mindspeed_llm.data.tokenizer import Tokenizer

CHAT_TEMPLATE = "glm4"


class Prompter:
    """Writes prompts in the chat template of --prompt-type (default: the one of the family that the tokenizer is of, else
    glm4), in the one that comes with the tokenizer under --hf-chat-template, or as they are under --no-chat-template.

    Either way the ids begin with the tokenizer's prefix (`[gMASK]<sop>`), without which GLM4 does badly.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template | HfTemplate | None,
                 system_prompt: str = "", tools: str = "") -> None:
        self.tokenizer, self.template, self._system_prompt, self._tools = tokenizer, template, system_prompt, tools

    @classmethod
    def of(cls, configs: Configs, tokenizer: Tokenizer, no_chat_template: bool, hf_chat_template: bool = False,
           system_prompt: str = "", tools: str = "") -> "Prompter":
        """What the command line says; `tools` is a JSON list of descriptions, empty for none.

        Raises UserError for an unknown template, FileNotFoundError for a missing one.
        """
        data = configs.data
        if hf_chat_template:
            return cls(tokenizer, HfTemplate(data.tokenizer_name_or_path), system_prompt, tools)
        template = None if no_chat_template else get_template(data.prompt_type or tokenizer.prompt_type or CHAT_TEMPLATE)
        return cls(tokenizer, template, system_prompt, tools)

    def prompt(self, text: str) -> list[int]:
        """Ids of one question."""
        return self.conversation([text])

    def conversation(self, turns: Sequence[str]) -> list[int]:
        """Ids of question, answer, question, ..., question. Without a template the turns are lines of one text."""
        if self.template is None:
            return self.tokenizer.encode("\n".join(turns), add_special=True)
        messages = [Message("assistant" if index % 2 else "user", text) for index, text in enumerate(turns)]
        system = [Message("system", self._system_prompt)] if self._system_prompt else []
        return self.template.encode_chat(self.tokenizer, [*system, *messages], self._tools)

    def text(self, ids: Sequence[int]) -> str:
        """An answer's text; white space at its start belongs to the template."""
        return self.tokenizer.decode(list(ids)).lstrip()
