"""Imports point downwards only, and what must run without the framework does not import it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mindspeed_llm"
ENTRYPOINTS = [ROOT / name for name in ("convert_ckpt.py", "preprocess_data.py", "pretrain_gpt.py", "inference.py",
                                        "evaluation.py")]

# What a layer may import besides itself; a dotted entry allows that module of another layer only.
ALLOWED = {
    "config": set(),
    "launch": {"config"},
    "report": {"config", "checkpoint.files"},
    "runtime": {"config"},
    "kernels": {"config", "runtime"},
    "core": {"config", "runtime", "kernels"},
    "checkpoint": {"config", "runtime", "core.sharding", "core.structure"},
    "families": {"config", "checkpoint", "core.sharding", "core.structure"},
    "data": {"config", "runtime", "families"},
    "session": {"config", "runtime", "kernels", "core", "checkpoint"},
    "generation": {"config", "runtime", "kernels", "core", "checkpoint.dtypes"},
    "training": {"config", "runtime", "kernels", "core", "data", "checkpoint", "session", "generation"},
    "tasks": {"config", "runtime", "kernels", "core", "families", "data", "checkpoint", "session", "generation",
              "training", "report"},
}
FRAMEWORK_FREE = ("config", "launch", "data", "checkpoint", "core/sharding.py", "core/structure.py", "families",
                  "report", "tasks/convert", "tasks/planner", "tasks/preprocess")


def _files(*places: str) -> list[Path]:
    found = []
    for place in places:
        path = PACKAGE / place
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def _imported(path: Path) -> list[tuple[str, int]]:
    """Full names of all that a file imports, at any depth of nesting, with their lines."""
    names = []
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(package[:len(package) - node.level + 1] + ((node.module,) if node.module else ()))
            names += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return names


def _violations(path: Path, layer: str) -> list[str]:
    bad = []
    for name, line in _imported(path):
        parts = name.split(".")
        if parts[0] != "mindspeed_llm" or len(parts) < 2 or parts[1] == layer or parts[1] not in ALLOWED:
            continue
        if parts[1] not in ALLOWED[layer] and ".".join(parts[1:3]) not in ALLOWED[layer]:
            bad.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return bad


@pytest.mark.parametrize("layer", ALLOWED)
def test_imports_point_downwards(layer):
    bad = [entry for path in _files(layer) for entry in _violations(path, layer)]
    assert not bad, "\n".join(bad)


def test_every_layer_is_ruled():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ALLOWED)


@pytest.mark.parametrize("place", FRAMEWORK_FREE)
def test_framework_is_not_imported(place):
    bad = [f"{path.relative_to(ROOT)}:{line} imports {name}" for path in _files(place) for name, line in _imported(path)
           if name.split(".")[0] == "mindspore"]
    assert not bad, "\n".join(bad)


def test_framework_is_not_loaded_by_what_describes_models():
    """The parts of a model name the framework's tensors, and load it only to run."""
    program = ("import sys, mindspeed_llm.core.structure, mindspeed_llm.checkpoint, mindspeed_llm.tasks.convert, "
               "mindspeed_llm.tasks.planner; print('mindspore' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "False\n"


@pytest.mark.parametrize("path", ENTRYPOINTS, ids=lambda path: path.name)
def test_entrypoints_import_only_config_before_parsing(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert top and all(module.startswith("mindspeed_llm.config") for module in top)


def test_scan_sees_an_upward_import(tmp_path, monkeypatch):
    """The rule can fail: an import of training inside a function of core is found, relative or not."""
    planted = tmp_path / "mindspeed_llm" / "core" / "planted.py"
    planted.parent.mkdir(parents=True)
    planted.write_text("def f():\n    from mindspeed_llm.training import run\n    from ..tasks import x\n",
                       encoding="utf-8")
    monkeypatch.setattr("test_imports.ROOT", tmp_path)
    assert len(_violations(planted, "core")) == 2
