"""Compiles the transport's C++ (see `runtime/cpp_build.py` for the cache).

    python -m mindspeed_llm.runtime.shared_memory.build      build ahead of time; says only why it could not
"""

from pathlib import Path

from mindspeed_llm.runtime import cpp_build
from mindspeed_llm.runtime.cpp_build import BuildError

SOURCES = Path(__file__).parent / "src"
FLAGS = "-std=c++17 -O3 -fPIC -shared -fno-math-errno -fno-trapping-math -Wall -Wextra".split()


def build() -> Path:
    """Path of the library; compiles it if it is not cached. Raises BuildError."""
    return cpp_build.build(cpp_build.library_path("shared-memory", SOURCES, " ".join(FLAGS)), _compile)


def _compile(target: Path) -> None:
    command = [*cpp_build.compiler(), *FLAGS, *map(str, sorted(SOURCES.glob("*.cc"))), "-o", str(target)]
    try:
        cpp_build.run([*command, "-march=native"])
    except BuildError:  # some compilers do not know the flag on their processor
        cpp_build.run(command)


def main() -> None:
    """Build ahead of time."""
    try:
        build()
    except BuildError as error:
        print(f"shared memory between ranks not available ({error}): MCCL will be used")


if __name__ == "__main__":
    main()
