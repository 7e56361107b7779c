"""Render the conversations of chat_cases.py with the models' own chat templates: writes chat_prompts.json.

    python tests/golden/make_chat_prompts.py glm4=FILE glm4_z1=FILE

FILE is the `chat_template` of glm-4-9b-chat's tokenizer_config.json, and GLM-Z1-9B-0414's chat_template.jinja, as text.
Needs transformers, whose renderer it uses; 5.24 made the recorded file. The templates speak of roles and metadata where
the OpenAI API speaks of calls: `native` translates as the models' authors do (openai_api_server.py of their
repository).
"""

import hashlib
import json
import sys
from pathlib import Path

from chat_cases import CASES
from transformers.utils.chat_template_utils import render_jinja_template


def native(messages: list[dict], tools: list[dict], name: str) -> tuple[list[dict], list[dict] | None]:
    """Messages and tools in the template's own terms."""
    turns = []
    for message in messages:
        if message["content"] and message["role"] != "tool":
            turns.append({"role": message["role"], "metadata": "", "content": message["content"]})
        turns += [{"role": "assistant", "metadata": call["function"]["name"], "content": call["function"]["arguments"]}
                  for call in message.get("tool_calls", ())]
        if message["role"] == "tool":
            turns.append({"role": "observation", "metadata": "", "content": message["content"]})
    if name == "glm4" and tools:    # its tools are part of a message
        turns = [{"role": "system", "metadata": "", "content": "", "tools": tools}, *turns]
        tools = []
    return turns, tools or None


def main() -> None:
    """Write chat_prompts.json beside this file."""
    recorded = {}
    for argument in sys.argv[1:]:
        name, _, file = argument.partition("=")
        template = Path(file).read_text(encoding="utf-8")
        prompts = {}
        for case, (messages, tools) in CASES.items():
            turns, listed = native(messages, tools, name)
            rendered, _ = render_jinja_template([turns], tools=listed, chat_template=template,
                                                add_generation_prompt=True)
            prompts[case] = rendered[0]
        recorded[name] = {"template_sha256": hashlib.sha256(template.encode()).hexdigest(), "prompts": prompts}
    out = Path(__file__).with_name("chat_prompts.json")
    out.write_text(json.dumps(recorded, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
