"""Building and caching the CPU kernels: what the cache depends on, and one-line reasons instead of crashes."""

import shutil

import pytest

from mindspeed_llm.kernels.cpu import build
from mindspeed_llm.runtime import cpp_build


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A private copy of the C++ sources."""
    copy = tmp_path / "src"
    shutil.copytree(build.SOURCES, copy)
    monkeypatch.setattr(build, "SOURCES", copy)
    return copy


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MINDSPEED_LLM_CACHE", raising=False)
    assert cpp_build.cache_dir() == tmp_path / "mindspeed_llm"
    monkeypatch.setenv("MINDSPEED_LLM_CACHE", str(tmp_path / "mine"))
    assert cpp_build.cache_dir() == tmp_path / "mine"


def test_path_follows_sources_compiler_flags_and_processor(cpu, sources, monkeypatch):
    paths = [build.library_path()]
    assert build.library_path() == paths[0]
    (sources / "ops.h").write_text((sources / "ops.h").read_text() + "\n")
    paths.append(build.library_path())
    monkeypatch.setattr(cpp_build, "_processor", lambda: "sse2")
    paths.append(build.library_path())
    monkeypatch.setattr(build, "MODULE_FLAGS", ["-w"])
    paths.append(build.library_path())
    monkeypatch.setenv("CXX", " ".join([*cpp_build.compiler(), "-g"]))
    paths.append(build.library_path())
    assert len(set(paths)) == len(paths)


def test_no_compiler_is_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    module, reason = build.load()
    assert module is None and "no-such-compiler" in reason and "\n" not in reason
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(cpp_build.shutil, "which", lambda name: None)
    module, reason = build.load()
    assert module is None and "install g++" in reason


def test_source_that_does_not_compile_is_one_line(cpu, sources, monkeypatch, tmp_path):
    monkeypatch.setenv("MINDSPEED_LLM_CACHE", str(tmp_path / "cache"))
    for path in sources.glob("*.cc"):
        path.write_text("int broken = ;\n")
    with pytest.raises(build.BuildError, match="failed: .*error") as caught:
        build.build()
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.so")) and not list((tmp_path / "cache").rglob("*.o"))


def test_cache_that_cannot_be_written_is_one_line(cpu, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINDSPEED_LLM_CACHE", str(tmp_path / "file"))
    module, reason = build.load()
    assert module is None and "MINDSPEED_LLM_CACHE" in reason


def test_library_that_does_not_load_is_one_line(cpu, monkeypatch, tmp_path):
    monkeypatch.setenv("MINDSPEED_LLM_CACHE", str(tmp_path))
    path = build.library_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a library")
    monkeypatch.setattr("mindspore.ops.CustomOpBuilder._loaded_ops", {})
    module, reason = build.load()
    assert module is None and str(path) in reason and "\n" not in reason


def test_command_says_in_one_line_what_happened(cpu, capsys):
    assert build.main() == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "built already" in out
