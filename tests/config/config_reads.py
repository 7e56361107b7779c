"""Which configuration fields the package reads outside `config/`, module by module, found by parsing it.

A field counts only when it is read from an expression that is known to be of its config class: a parameter or return value
annotated so, an attribute of one (`configs.train.seed`), an attribute that a class assigned from one, or a local name for
any of these. So a common name read from something else (`options.seed`) does not count. Reading a property or method of
a config class counts for the fields that this reads.
"""

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from mindspeed_llm.config.flags import CONFIGS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mindspeed_llm"
PART_OF = {config.__name__: part for part, config in CONFIGS.items()}
FIELDS = {config.__name__: {field.name for field in fields(config)} for config in CONFIGS.values()}


def module_name(path: Path) -> str:
    """`mindspeed_llm/core/gpt_model.py` -> `mindspeed_llm.core.gpt_model`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def trees() -> dict[str, ast.Module]:
    """The parsed package and entrypoints, by module name; not the launcher, which starts them and knows no configuration
    (its names are others' too, and `Types` tells classes and functions apart by their names alone).
    """
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8"))
            for path in (*PACKAGE.rglob("*.py"), *ROOT.glob("*.py")) if PACKAGE / "launch" not in path.parents}


def annotated(node: ast.expr | None) -> str | None:
    """The class name in an annotation: `X`, `"X"`, `X | None`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.BinOp):
        return annotated(node.left)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


class Types:
    """What is known of the package's classes and functions: attributes' classes, returned classes, methods' reads."""

    def __init__(self) -> None:
        self.attributes: dict[str, dict[str, str]] = defaultdict(dict)
        self.returns: dict[str, str | None] = {}
        self.method_reads: dict[str, dict[str, set[str]]] = defaultdict(dict)
        classes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for tree in trees().values():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    self.returns[node.name] = annotated(node.returns)
        for node in classes:
            self.returns[node.name] = node.name
            for member in node.body:
                if isinstance(member, ast.AnnAssign) and (name := annotated(member.annotation)):
                    self.attributes[node.name][member.target.id] = name
                elif (isinstance(member, ast.FunctionDef) and (name := annotated(member.returns))
                      and any(annotated(mark) in ("property", "cached_property") for mark in member.decorator_list)):
                    self.attributes[node.name][member.name] = name
        for node in classes:
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    Scope(self, {"self": node.name}, set()).function(method)
        for node in classes:
            if node.name in PART_OF:
                self._methods(node)

    def _methods(self, node: ast.ClassDef) -> None:
        methods = {member.name: member for member in node.body if isinstance(member, ast.FunctionDef)}
        used = {name: {inner.attr for inner in ast.walk(method) if isinstance(inner, ast.Attribute)
                       and isinstance(inner.value, ast.Name) and inner.value.id in ("self", "cls")}
                for name, method in methods.items()}
        for name in methods:
            seen, pending = set(), [name]
            while pending:
                current = pending.pop()
                if current not in seen:
                    seen.add(current)
                    pending += used.get(current, ())
            self.method_reads[node.name][name] = seen & FIELDS[node.name]


class Scope:
    """Walks statements in order with the classes of local names; adds what is read to `found` as `part.field`."""

    def __init__(self, types: Types, names: dict[str, str], found: set[str]) -> None:
        self.types, self.names, self.found = types, names, found

    def function(self, node: ast.FunctionDef | ast.Lambda) -> None:
        """A function body, with its own parameters and the names around it."""
        inner = Scope(self.types, dict(self.names), self.found)
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.annotation is not None and (name := annotated(argument.annotation)):
                inner.names[argument.arg] = name
            elif argument.arg != "self":
                inner.names.pop(argument.arg, None)
        for statement in node.body if isinstance(node.body, list) else [node.body]:
            inner.visit(statement)

    def visit(self, node: ast.AST) -> None:
        """One statement or expression and all in it."""
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                Scope(self.types, {**self.names, "self": node.name}, self.found).visit(member)
            return
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            self.function(node)
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = self.type_of(node.value)
            if owner in PART_OF:
                read = {node.attr} & FIELDS[owner] | self.types.method_reads[owner].get(node.attr, set())
                self.found |= {f"{PART_OF[owner]}.{name}" for name in read}
        for child in ast.iter_child_nodes(node):
            self.visit(child)
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts):
                self._assign(one, other)
            return
        name = self.type_of(value)
        if name is None:
            return
        if isinstance(target, ast.Name):
            self.names[target.id] = name
        elif isinstance(target, ast.Attribute) and (owner := self.type_of(target.value)):
            self.types.attributes[owner].setdefault(target.attr, name)

    def type_of(self, node: ast.expr) -> str | None:
        """The class of an expression, where it is known."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.types.attributes[self.type_of(node.value) or ""].get(node.attr)
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            return self.type_of(node.args[0]) if called == "replace" and node.args else self.types.returns.get(called)
        return None


@functools.cache
def reads() -> dict[str, frozenset[str]]:
    """`part.field` names that each module outside `config/` reads."""
    types = Types()
    found = {}
    for name, tree in trees().items():
        if not name.startswith("mindspeed_llm.config"):
            mine: set[str] = set()
            Scope(types, {}, mine).visit(tree)
            found[name] = frozenset(mine)
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    """Modules of the package that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reachable(script: str) -> set[str]:
    """Modules outside `config/` that an entrypoint's script imports, directly or not."""
    seen, pending = set(), [script.removesuffix(".py")]
    while pending:
        name = pending.pop()
        if name in seen or name not in trees() or name.startswith("mindspeed_llm.config"):
            continue
        seen.add(name)
        pending += imported(trees()[name])
    return seen
