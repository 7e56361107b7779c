"""Builds and loads the C++ kernels: once per machine, cached, safe with many processes starting at once.

    python -m mindspeed_llm.kernels.cpu.build [--quiet]      build ahead of time, print one line

The library is kept in `$MINDSPEED_LLM_CACHE`, else `$XDG_CACHE_HOME/mindspeed_llm`, else `~/.cache/mindspeed_llm`, in a
directory named after a hash of everything it depends on: sources, MindSpore, Python, compiler, flags, processor.
"""

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

NAME = "mindspeed_llm_cpu"
SOURCES = Path(__file__).parent / "src"
LIBRARY = f"{NAME}.so"

# fp contraction is named because -std=c++17 turns it off in some compilers; no -ffast-math: infinities and NaN matter.
KERNEL_FLAGS = ("-O3 -fopenmp-simd -fno-math-errno -fno-trapping-math -ffp-contract=fast -fno-stack-protector "
                "-fvisibility=hidden -Wall -Wextra -Wno-maybe-uninitialized").split()
MODULE_FLAGS = "-fvisibility=hidden -w".split()


class BuildError(Exception):
    """The kernels cannot be built or loaded here; the text is one line saying why."""


def cache_dir() -> Path:
    """Directory of all cached builds of this user."""
    explicit = os.environ.get("MINDSPEED_LLM_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mindspeed_llm"


def compiler() -> list[str]:
    """The C++ compiler command: $CXX, else g++ or c++ (GCC 11 or later). Raises BuildError when there is none."""
    named = os.environ.get("CXX")
    if named:
        command = shlex.split(named)
        if shutil.which(command[0]) is None:
            raise BuildError(f"the compiler CXX={named} was not found")
        return command
    for candidate in ("g++", "c++"):
        if shutil.which(candidate):
            return [candidate]
    raise BuildError("no C++ compiler found: install g++ or set CXX")


def cache_key(command: list[str]) -> str:
    """Hash of all that the library depends on."""
    seen = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        seen.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    banner = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    for text in (version("mindspore"), str(_mindspore_dir()), sysconfig.get_config_var("SOABI") or sys.version, banner,
                 " ".join([*command, *KERNEL_FLAGS, *MODULE_FLAGS]), platform.machine(), _cpu_flags()):
        seen.update(text.encode() + b"\0")
    return seen.hexdigest()[:20]


def library_path() -> Path:
    """Where the library for this machine is or will be. Raises BuildError without a compiler or MindSpore."""
    return cache_dir() / f"cpu-kernels-{cache_key(compiler())}" / LIBRARY


def build() -> Path:
    """Path of the library; compiles it if it is not cached. Raises BuildError."""
    path = library_path()
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent / "lock"):
            if not path.exists():
                _compile(path)
    except OSError as error:
        raise BuildError(f"cannot write to {cache_dir()}: {error.strerror}: set MINDSPEED_LLM_CACHE") from error
    return path


def load():
    """`(module, None)`, or `(None, reason)` when the kernels cannot be built or loaded here. Imports MindSpore."""
    try:
        path = build()
        from mindspore import ops

        class Prebuilt(ops.CustomOpBuilder):
            def build(self) -> str:
                return str(path)

        module = Prebuilt(NAME, [str(SOURCES / "module.cc")], backend="CPU").load()
    except BuildError as error:
        return None, str(error)
    except (ImportError, OSError) as error:
        return None, f"cannot load {path}: {str(error).splitlines()[0]}"
    return module, None


def _mindspore_dir() -> Path:
    spec = find_spec("mindspore")
    if spec is None or spec.origin is None:
        raise BuildError("MindSpore is not installed")
    return Path(spec.origin).parent


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    for line in info.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return " ".join(sorted(line.partition(":")[2].split()))
    return platform.processor()


@contextmanager
def _locked(path: Path):
    with open(path, "a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compile(target: Path) -> None:
    """Compile every source, link, and move the library to `target` in one step."""
    from mindspore import ops
    command = compiler()
    builder = ops.CustomOpBuilder(NAME, [str(SOURCES / "module.cc")], backend="CPU")
    common = [flag for flags in builder.get_cflags() for flag in shlex.split(flags)]
    includes = [f"-I{path}" for path in builder.get_include_paths()]
    includes += ["-isystem", sysconfig.get_path("include")]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as work:
        jobs = []
        # the module first: it takes longest
        for source in sorted(SOURCES.glob("*.cc"), key=lambda path: path.name != "module.cc"):
            is_module = source.name == "module.cc"
            flags = [*includes, *MODULE_FLAGS] if is_module else KERNEL_FLAGS
            obj = Path(work) / f"{source.stem}.o"
            jobs.append(([*command, *common, *flags, "-c", str(source), "-o", str(obj)], obj))
        with ThreadPoolExecutor(max_workers=min(len(jobs), os.cpu_count() or 1)) as pool:
            list(pool.map(_run, (job for job, _ in jobs)))
        library = Path(work) / LIBRARY
        link = [flag for flags in builder.get_ldflags() for flag in shlex.split(flags)]
        _run([*command, *(str(obj) for _, obj in jobs), *link, "-lpthread", "-o", str(library)])
        with open(library, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(library, target)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "error" in line] or result.stderr.splitlines()
        raise BuildError(f"{Path(command[0]).name} failed: {errors[0].strip() if errors else result.returncode}")


def main() -> int:
    """Build ahead of time and say so in one line; with --quiet, say nothing when it was built already."""
    try:
        known = library_path().exists()
        path = build()
    except BuildError as error:
        print(f"kernels: cpu backend not available ({error}): reference will be used")
        return 0
    if not (known and "--quiet" in sys.argv[1:]):
        print(f"kernels: cpu backend {'is built already' if known else 'built'}: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
