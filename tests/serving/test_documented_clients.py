"""The clients that docs/serving.md shows get their answers: the openai package and curl."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.standin import MODEL, running

DOCUMENT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(glm_tokenizer):
    with running(glm_tokenizer) as found:
        found.engine.say("\nParis, 你好")
        yield found


def shown(server, language, word):
    """The block of that language that has the word, for this server."""
    (block,) = [block for block in re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL) if word in block]
    return block.replace("http://127.0.0.1:8000", server.url).replace('"glm4-9b"', f'"{MODEL}"')


def test_openai(server):
    done = subprocess.run([sys.executable, "-c", shown(server, "python", "OpenAI")], capture_output=True, text=True,
                          timeout=60)
    assert (done.returncode, done.stdout) == (0, "Paris, 你好"), done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(server):
    done = subprocess.run(["bash", "-c", shown(server, "bash", "curl")], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "Paris, 你好", done.stderr
    assert server.engine.requests[-1].config.max_new_tokens == 100
