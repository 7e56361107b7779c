"""The page in a browser: streaming, settings, tools, thoughts, errors; nothing from elsewhere, nothing read as HTML.

Skipped without Chromium. PAGE_PICTURES=folder keeps pictures of what the tests see.
"""

import os
import re
from pathlib import Path

import pytest

from mindspeed_llm.tasks.inference.serving import page
from tests.serving.browser import PROGRAM, tab
from tests.serving.standin import MODEL, running

needs_browser = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")
TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'


@pytest.fixture(scope="module")
def server(glm_tokenizer):
    with running(glm_tokenizer, api_key="k") as found:
        yield found


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with tab(tmp_path_factory.mktemp("browser")) as found:
        yield found


def show(window, server, **how):
    """The page with the key given."""
    window.open(server.url, **how)
    window.run("sessionStorage.setItem('key', 'k'); localStorage.clear()")
    window.open(server.url, **how)
    window.wait(f"document.title === '{MODEL}'")
    window.complaints.clear()


def write(window, field, text):
    window.run(f"(() => {{ const box = document.getElementById('{field}'); box.value = {text!r}; "
               "box.dispatchEvent(new Event('input')); box.dispatchEvent(new Event('change')); })()")


def ask(window, text):
    write(window, "question", text)
    window.run("document.getElementById('send').click()")


def finished(window, count):
    window.wait(f"document.querySelectorAll('.foot').length === {count}")


def keep(window, name):
    if "PAGE_PICTURES" in os.environ:
        window.picture(Path(os.environ["PAGE_PICTURES"]) / f"{name}.png")


def prompts(server, tokenizer):
    return [tokenizer.decode(list(request.prompt), skip_special=False) for request in server.engine.requests]


def test_the_file_needs_nothing_from_elsewhere():
    text = Path(page.__file__).with_name("page.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^'\"\s)]+", text)) == {"http://www.w3.org/2000/svg"}    # a name, not an address
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=| style=", text)
    assert len(text) < 40_000


@needs_browser
def test_a_conversation(window, server, glm_tokenizer):
    server.engine.requests.clear()
    server.engine.say("\n<think>\nA capital.</think>\nIt is **Paris**.\n```python\nprint(1)\n```\n"
                      "<img src=x onerror=alert(1)>")
    show(window, server)
    assert window.run("getComputedStyle(document.body).backgroundColor") == "rgb(246, 246, 243)"
    write(window, "system", "Be brief.")
    write(window, "temperature", "0.5")
    ask(window, "What is <b>it</b>?")
    finished(window, 1)
    assert window.run("document.querySelector('.thoughts div').textContent") == "A capital."
    assert window.run("document.querySelector('.turn strong').textContent") == "Paris"
    assert window.run("document.querySelector('pre code').textContent") == "print(1)"
    words = window.run("document.querySelector('#turns').innerText")
    assert "What is <b>it</b>?" in words and "<img src=x onerror=alert(1)>" in words and "tokens" in words
    assert window.run("document.querySelectorAll('#turns img, #turns b').length") == 0
    keep(window, "conversation")
    ask(window, "And?")
    finished(window, 2)
    first, second = prompts(server, glm_tokenizer)
    assert first == "[gMASK]<sop><|system|>\nBe brief.<|user|>\nWhat is <b>it</b>?<|assistant|>"
    assert second.startswith(first + "\nIt is **Paris**.") and second.endswith("<|user|>\nAnd?<|assistant|>")
    assert server.engine.requests[0].config.temperature == 0.5
    window.run("document.getElementById('new').click()")
    assert window.run("document.querySelectorAll('.turn').length") == 0
    assert window.complaints == []


@needs_browser
def test_tools_and_stopping_at_phone_width_in_the_dark(window, server, glm_tokenizer):
    server.engine.requests.clear()
    server.engine.say('weather\n{"city": "Paris"}')
    show(window, server, width=390, height=780, dark=True)
    write(window, "tools", TOOLS)
    ask(window, "Weather?")
    finished(window, 1)
    assert "weather" in window.run("document.querySelector('.call h3').textContent")
    assert window.run("document.querySelector('.call pre').textContent") == '{\n  "city": "Paris"\n}'
    keep(window, "tool")
    server.engine.say("\nSunny. " + "And so on. " * 200)
    server.engine.pace = 0.01
    window.run("document.querySelector('.call textarea').value = 'sunny';"
               "document.querySelector('.call form').requestSubmit()")
    window.wait("document.body.innerText.includes('And so on. And so on.')")
    assert prompts(server, glm_tokenizer)[1].endswith(
        '<|assistant|>weather\n{"city": "Paris"}<|observation|>\nsunny<|assistant|>')
    window.run("document.getElementById('send').click()")   # stop
    finished(window, 2)
    server.engine.pace = 0.0
    assert "stopped" in window.run("document.querySelectorAll('.foot')[1].textContent")
    assert window.run("document.documentElement.scrollWidth") <= 390
    window.run("document.getElementById('open').click()")
    assert window.run("document.activeElement.id") == "system"
    keep(window, "settings")
    assert window.run("document.documentElement.scrollWidth") <= 390
    assert window.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 22)"
    assert window.complaints == []


@needs_browser
def test_errors_are_told(window, server):
    show(window, server)
    write(window, "tools", "[")
    ask(window, "Hello")
    window.wait("document.querySelector('[role=alert]')")
    assert "are not JSON" in window.run("document.querySelector('[role=alert]').textContent")
    write(window, "tools", "")
    server.engine.say("\nfine")
    window.run("document.querySelector('[role=alert] button').click()")
    window.wait("document.querySelector('.turn:last-child .words').textContent === 'fine'")
    window.run("sessionStorage.setItem('key', 'wrong')")
    window.open(server.url)
    ask(window, "Hello")
    window.wait("document.querySelector('[role=alert]')")
    assert "a wrong one" in window.run("document.querySelector('[role=alert]').textContent")
    assert not window.run("document.getElementById('settings').hidden")


@needs_browser
def test_everything_has_a_name(window, server):
    """Of what can be used: a label or a text."""
    show(window, server)
    window.run("document.getElementById('open').click()")
    tree = window.call("Accessibility.getFullAXTree")["nodes"]
    used = [node for node in tree if not node["ignored"]
            and node["role"]["value"] in ("button", "textbox", "spinbutton")]
    assert len(used) > 12
    assert [node for node in used if not node["name"]["value"].strip()] == []
