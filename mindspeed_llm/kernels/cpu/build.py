"""Builds and loads the C++ kernels (see `runtime/cpp_build.py` for the cache).

    python -P mindspeed_llm/kernels/cpu/build.py [--quiet]   build ahead of time, print one line; with the checkout on
                                                             PYTHONPATH. Imports MindSpore only to compile.
"""

import os
import shlex
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mindspeed_llm.runtime import cpp_build
from mindspeed_llm.runtime.cpp_build import BuildError

NAME = "mindspeed_llm_cpu"
SOURCES = Path(__file__).parent / "src"

# fp contraction is named because -std=c++17 turns it off in some compilers; no -ffast-math: infinities and NaN matter.
KERNEL_FLAGS = ("-O3 -fopenmp-simd -fno-math-errno -fno-trapping-math -ffp-contract=fast -fno-stack-protector "
                "-fvisibility=hidden -Wall -Wextra -Wno-maybe-uninitialized").split()
MODULE_FLAGS = "-fvisibility=hidden -w".split()


def library_path() -> Path:
    """Where the library for this machine is or will be. Raises BuildError without a compiler or MindSpore."""
    return cpp_build.library_path(
        NAME, SOURCES, str(_mindspore_dir()), version("mindspore"), " ".join(KERNEL_FLAGS + MODULE_FLAGS),
        sysconfig.get_config_var("SOABI") or sys.version)


def build() -> Path:
    """Path of the library; compiles it if it is not cached. Raises BuildError."""
    return cpp_build.build(library_path(), _compile)


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


def _compile(target: Path) -> None:
    """Compile every source beside `target`, and link."""
    from mindspore import ops
    command = cpp_build.compiler()
    builder = ops.CustomOpBuilder(NAME, [str(SOURCES / "module.cc")], backend="CPU")
    common = [flag for flags in builder.get_cflags() for flag in shlex.split(flags)]
    includes = [f"-I{path}" for path in builder.get_include_paths()]
    includes += ["-isystem", sysconfig.get_path("include")]
    jobs = []
    # the module first: it takes longest
    for source in sorted(SOURCES.glob("*.cc"), key=lambda path: path.name != "module.cc"):
        flags = [*includes, *MODULE_FLAGS] if source.name == "module.cc" else KERNEL_FLAGS
        obj = target.with_name(f"{source.stem}.o")
        jobs.append(([*command, *common, *flags, "-c", str(source), "-o", str(obj)], obj))
    with ThreadPoolExecutor(max_workers=min(len(jobs), os.cpu_count() or 1)) as pool:
        list(pool.map(cpp_build.run, (job for job, _ in jobs)))
    link = [flag for flags in builder.get_ldflags() for flag in shlex.split(flags)]
    cpp_build.run([*command, *(str(obj) for _, obj in jobs), *link, "-lpthread", "-o", str(target)])


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
