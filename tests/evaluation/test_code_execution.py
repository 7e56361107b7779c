"""Programs that a model wrote are judged by their tests, and kept from the rest of the machine.

Each attack is a program that comes to its end if it succeeds: `passes` is then true.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mindspeed_llm.tasks.evaluation import code_execution, sandbox
from mindspeed_llm.tasks.evaluation.code_execution import passes
from mindspeed_llm.tasks.evaluation.eval_impl import human_eval
from mindspeed_llm.tasks.evaluation.prompts import Question

FUNCTION = Question("import math\n\n\ndef one(x):\n    \"\"\"Add one.\"\"\"\n", answer="passed", details={
    "task_id": "t", "entry_point": "one", "test": "def check(candidate):\n    assert candidate(1) == 2\n"})


@pytest.fixture(params=["namespaces", "limits alone"])
def surroundings(request, monkeypatch):
    """What the system gives, and what is left where it gives no namespaces."""
    if request.param == "limits alone":
        monkeypatch.setattr(code_execution, "isolated", lambda: False)
    elif not code_execution.isolated():
        pytest.skip("the system gives no namespaces here")


@pytest.mark.parametrize(("text", "score"), [
    ("    return x + 1\n", 1.0),
    ("Sure:\n```python\ndef one(x):\n    return math.floor(x) + 1\n```\nDone.", 1.0),
    ("    return x\n", 0.0),
    ("    return (\n", 0.0),
    ("    exit()\n", 0.0),
    ("    return x\n\nimport os\nos._exit(0)\n", 0.0),
])
def test_functions_are_judged_by_their_tests(text, score):
    assert human_eval.judge(human_eval.program(text, FUNCTION), FUNCTION) == score


def test_ordinary_programs_come_to_their_end(surroundings):
    assert passes("import hashlib, json, random, re, tempfile, threading\nimport numpy\n"
                  "open('x', 'w').write('é')\ntempfile.mkstemp()\n"
                  "t = threading.Thread(target=print)\nt.start()\nt.join()\n"
                  "class A: pass\nassert A.__module__ == __name__ == '__main__'\n")


ATTACKS = {
    "memory": "x = bytearray(2 << 30)",
    "a large file": "open('x', 'wb').write(bytes(20 << 20))",
    "open files": "files = [open('/dev/null') for _ in range(100)]",
    "higher limits": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (999, 999))",
    "recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
    "secrets in its environment": "import os\nassert 'SECRET' in os.environ",
    "files left open": "import os\nassert any(os.path.exists(f'/dev/fd/{n}') for n in range(4, 30))",
    "time": "while True: pass",
    "sleep": "import time\ntime.sleep(60)",
    "output without end": "while True: print('x' * 65536)",
    "deaf to signals": "import signal\nfor n in 1, 2, 3, 14, 15, 24: signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's program may do this where there are no namespaces")
def test_programs_of_root_are_nobodys(surroundings, tmp_path):
    """Without namespaces too: root's processes would not be counted, and could end all others."""
    (tmp_path / "note").write_text("untouched")
    assert passes("import os\nassert os.getuid() == os.getgid() == 65534 and not os.getgroups()")
    assert not passes(f"open({str(tmp_path / 'note')!r}, 'w').write('hit')")
    assert not passes("import os\nos.setuid(0)")
    assert not passes("import os\nfor n in range(40):\n    if not os.fork(): os.execvp('sleep', ['sleep', '9'])")
    assert not passes(f"import os\nos.kill({os.getpid()}, 0)")
    assert (tmp_path / "note").read_text() == "untouched"


def test_attacks(surroundings, monkeypatch):
    monkeypatch.setenv("SECRET", "told to nobody")
    started = time.monotonic()
    assert _successful(ATTACKS) == []
    assert time.monotonic() - started < 20


def _successful(attacks: dict[str, str]) -> list[str]:
    """Those that come to their end; they run side by side, because most of them wait."""
    with ThreadPoolExecutor(4) as pool:
        ends = pool.map(lambda text: passes(text, seconds=1), attacks.values())
        return [name for name, passed in zip(attacks, ends, strict=True) if passed]


REMOUNT = "assert c.umount2(b'/usr', 2) == 0 or c.mount(None, b'/usr', None, 32 | 4096, None) == 0"
ATTACKS_ON_THE_MACHINE = {
    "another file": "open({note!r}, 'w').write('hit')",
    "removal of a file": "import os\nos.remove({note!r})",
    "reading a file": "open({note!r}).read()",
    "the interpreter": "import sys\nopen(sys.prefix + '/x', 'w').write('x')",
    "the secrets of the parent": "open('/proc/{pid}/environ', 'rb').read()",
    "killing the parent": "import os\nos.kill({pid}, 0)",
    "killing its guard": "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(9)",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', {port}))",
    "the disk": "for n in range(9): open(f'f{{n}}', 'wb').write(bytes(15 << 20))",
    "processes": "import os\nfor n in range(40):\n    if not os.fork(): os.execvp('sleep', ['sleep', '9'])",
    "writable mounts": f"import ctypes\nc = ctypes.CDLL(None)\n{REMOUNT}",
    "namespaces of its own": f"import ctypes\nc = ctypes.CDLL(None)\nassert c.unshare(0x10020000) == 0\n{REMOUNT}",
}


@pytest.mark.skipif(not code_execution.isolated(), reason="the system gives no namespaces here")
def test_attacks_on_the_machine(tmp_path):
    note = tmp_path / "note"
    note.write_text("untouched")
    with socket.create_server(("127.0.0.1", 0)) as server:
        values = {"note": str(note), "pid": os.getpid(), "port": server.getsockname()[1]}
        assert _successful({name: text.format(**values) for name, text in ATTACKS_ON_THE_MACHINE.items()}) == []
    assert note.read_text() == "untouched"


LEAVE_ONE_BEHIND = """
import ctypes, os
ctypes.CDLL(None).prctl(1, 0)
for _ in range(2):
    if os.fork():
        break
    os.setsid()
else:
    os.execvp("sleep", ["sleep", "{seconds}"])
"""


def test_no_process_and_no_file_is_left(surroundings, tmp_path, monkeypatch):
    """Of a program that ends or is ended after it has hidden a process from its group."""
    monkeypatch.setattr(code_execution.tempfile, "tempdir", str(tmp_path))
    seconds = str(1000 + os.getpid())
    program = LEAVE_ONE_BEHIND.format(seconds=seconds)
    passes(program)
    passes(program + "\nwhile True: pass", seconds=1)
    time.sleep(0.1)
    assert f"sleep {seconds}" not in _listed() and not list(tmp_path.iterdir())


@pytest.mark.skipif(not code_execution.isolated(), reason="the system gives no namespaces here")
def test_all_ends_with_the_evaluation(tmp_path):
    """Even when that is killed and can end nothing itself."""
    seconds = str(2000 + os.getpid())
    program = f"import os\nos.execvp('sleep', ['sleep', '{seconds}'])".encode()
    command = [sys.executable, "-I", "-B", sandbox.__file__, "600", str(tmp_path), "namespaces"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        process.stdin.write(program)
        process.stdin.close()
        end = time.monotonic() + 10
        while f"sleep {seconds}" not in _listed() and time.monotonic() < end:
            time.sleep(0.05)
        assert f"sleep {seconds}" in _listed()
        process.send_signal(signal.SIGKILL)
    time.sleep(0.2)
    assert f"sleep {seconds}" not in _listed()


def _listed() -> str:
    return subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
