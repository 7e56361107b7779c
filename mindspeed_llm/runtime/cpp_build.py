"""C++ libraries compiled on first use: once per machine and user, cached, safe with many processes starting at once.

They are kept in `$MINDSPEED_LLM_CACHE`, else `$XDG_CACHE_HOME/mindspeed_llm`, else `~/.cache/mindspeed_llm`, each in a
directory named after a hash of everything it depends on.
"""

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path


class BuildError(Exception):
    """A library cannot be built or loaded here; the text is one line saying why."""


def cache_dir() -> Path:
    """Directory of all cached builds of this user."""
    explicit = os.environ.get("MINDSPEED_LLM_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mindspeed_llm"


def compiler() -> list[str]:
    """The C++ compiler command: $CXX, else g++, c++ or clang++. Raises BuildError when there is none."""
    named = os.environ.get("CXX")
    for command in [shlex.split(named)] if named else (["g++"], ["c++"], ["clang++"]):
        if shutil.which(command[0]):
            return command
    raise BuildError(f"the compiler CXX={named} was not found" if named
                     else "no C++ compiler found: install g++ or set CXX")


def library_path(name: str, sources: Path, *depends: str) -> Path:
    """Where the library is or will be, given its directory of sources and what else it depends on (flags, versions)
    besides compiler and processor. Raises BuildError without a compiler.
    """
    command, seen = compiler(), hashlib.sha256()
    for path in sorted(sources.iterdir()):
        seen.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    banner = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    for text in (*depends, " ".join(command), banner, platform.machine(), _processor()):
        seen.update(text.encode() + b"\0")
    return cache_dir() / f"{name}-{seen.hexdigest()[:20]}" / f"{name}.so"


def build(path: Path, compile_to: Callable[[Path], None]) -> Path:
    """`path`, made by `compile_to` if it is not there: called with a target in a directory of its own, by one process at a
    time. Raises BuildError.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / "lock", "a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as work:
                    target = Path(work) / path.name
                    compile_to(target)
                    with open(target, "rb") as handle:
                        os.fsync(handle.fileno())
                    os.replace(target, path)
    except OSError as error:
        raise BuildError(f"cannot write to {cache_dir()}: {error.strerror}: set MINDSPEED_LLM_CACHE") from error
    return path


def run(command: list[str]) -> None:
    """Run a compiler. Raises BuildError with its first error line."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        raise BuildError(f"{Path(command[0]).name} failed: {errors[0].strip() if errors else result.returncode}")


def _processor() -> str:
    """What the compiler may know about the processor."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith(("flags", "Features")):
            return " ".join(sorted(line.partition(":")[2].split()))
    return platform.processor()
