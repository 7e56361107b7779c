"""Compiles the transport's C++ once per machine and user, cached, safe with many processes starting at once.

    python -m mindspeed_llm.runtime.shared_memory.build      build ahead of time; says only why it could not

The library is kept in `$MINDSPEED_LLM_CACHE`, else `$XDG_CACHE_HOME/mindspeed_llm`, else `~/.cache/mindspeed_llm`, in a
directory named after a hash of the sources, the compiler, the flags and the processor.
"""

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
LIBRARY = "shared_memory.so"
FLAGS = "-std=c++17 -O3 -fPIC -shared -fno-math-errno -fno-trapping-math -Wall -Wextra".split()
# The second is for compilers that do not know the first on their processor.
TUNING = (["-march=native"], [])


class BuildError(Exception):
    """The library cannot be built here; the text is one line saying why."""


def build() -> Path:
    """Path of the library; compiles it if it is not cached. Raises BuildError."""
    command = _compiler()
    directory = _cache_dir() / f"shared-memory-{_key(command)}"
    path = directory / LIBRARY
    if path.exists():
        return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "lock", "a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _compile(command, path)
    except OSError as error:
        raise BuildError(f"cannot write to {directory}: {error.strerror}: set MINDSPEED_LLM_CACHE") from error
    return path


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    for command in [shlex.split(named)] if named else (["g++"], ["c++"], ["clang++"]):
        if shutil.which(command[0]):
            return command
    raise BuildError(f"the compiler CXX={named} was not found" if named
                     else "no C++ compiler found: install g++ or set CXX")


def _cache_dir() -> Path:
    explicit = os.environ.get("MINDSPEED_LLM_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mindspeed_llm"


def _key(command: list[str]) -> str:
    seen = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        seen.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    banner = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    for text in (banner, " ".join([*command, *FLAGS]), platform.machine(), _processor()):
        seen.update(text.encode() + b"\0")
    return seen.hexdigest()[:20]


def _processor() -> str:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _compile(command: list[str], target: Path) -> None:
    sources = [str(path) for path in sorted(SOURCES.glob("*.cc"))]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as work:
        library = Path(work) / LIBRARY
        for tuning in TUNING:
            result = subprocess.run([*command, *FLAGS, *tuning, *sources, "-o", str(library)], capture_output=True,
                                    text=True, check=False)
            if result.returncode == 0:
                break
        else:
            lines = result.stderr.splitlines()
            first = next((line for line in lines if "error" in line), lines[0] if lines else str(result.returncode))
            raise BuildError(f"{command[0]} failed: {first.strip()}")
        with open(library, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(library, target)


def main() -> None:
    """Build ahead of time."""
    try:
        build()
    except BuildError as error:
        print(f"shared memory between ranks not available ({error}): MCCL will be used")


if __name__ == "__main__":
    main()
