"""Stand-ins that check a call against MindSpore's own signature before anything computes it.

A `Recorder` takes the place of a namespace (`ops`, `mint`, `dist`, ...) in a module under test. Every call through it
is bound to the signature of the installed function, must be documented for Ascend, is noted by its full name, and is
then answered by an emulator if there is one, else by MindSpore itself.
"""

import ast
import inspect
import re
import types
from pathlib import Path

# Documented without a list of platforms, or on a web page only.
UNLISTED = {"ms.set_device", "ms.set_seed", "ms.set_deterministic", "Tensor.add_"}


class Recorder:
    """Stands for the namespace `real`, called `name` in the code under test."""

    def __init__(self, real, name, emulators, calls):
        self._real, self._name, self._emulators, self._calls = real, name, emulators, calls

    def __getattr__(self, attribute):
        real, name = getattr(self._real, attribute), f"{self._name}.{attribute}"
        if isinstance(real, types.ModuleType):
            return Recorder(real, name, self._emulators, self._calls)
        return recorded(real, name, self._emulators, self._calls) if callable(real) else real


def recorded(real, name, emulators, calls):
    """A function that binds, notes and answers calls of `real`."""
    def call(*args, **kwargs):
        bound = signature(real).bind(*args, **kwargs)
        assert name in UNLISTED or "``Ascend``" in platforms(real), f"{name} is not documented for Ascend"
        calls.append((name, dict(bound.arguments)))
        return emulators.get(name, real)(*args, **kwargs)
    return call


def signature(real):
    """That of a function; a method of MindSpore's C++ tensor has none, its documentation begins with it instead."""
    try:
        return inspect.signature(real)
    except ValueError:
        written = real.__doc__.strip().splitlines()[0].partition(" ->")[0]
        arguments = written[written.index("("):].replace("(", "(self, ", 1)
        scope = {}
        exec(f"def documented{arguments}: pass", scope)
        return inspect.signature(scope["documented"])


def recorded_primitive(real, name, emulators, calls):
    """The same for an operator class: its construction and its calls are bound to `__init__` and `__call__`."""
    def construct(*args, **kwargs):
        inspect.signature(real).bind(*args, **kwargs)
        assert "``Ascend``" in platforms(real), f"{name} is not documented for Ascend"
        answer = emulators[name](*args, **kwargs)

        def call(*args, **kwargs):
            bound = inspect.signature(real.__call__).bind(None, *args, **kwargs)
            calls.append((name, dict(bound.arguments)))
            return answer(*args, **kwargs)
        return call
    return construct


def platforms(real):
    """The text after "Supported Platforms" in a docstring."""
    return (real.__doc__ or "").partition("Supported Platforms")[2][:120]


def called_names(path: Path, roots: set[str]) -> set[str]:
    """Dotted names of all calls in a file that begin with one of `roots`."""
    called = (ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
              if isinstance(node, ast.Call))
    return {name for name in called if re.fullmatch(r"[\w.]+", name) and name.split(".")[0] in roots}


def names(calls):
    """The names in a list of noted calls."""
    return {name for name, _ in calls}

