"""MindSpore's own Ascend back end on a machine without an NPU, for dry runs:

    python tests/ascend/dry_run/stubs.py DIR      then:  source DIR/env.sh

MindSpore's wheel has the Ascend plug-in in it: dispatch of every operator, type and shape rules, autograd, memory pool,
HCCL's interface. It needs CANN's libraries when it is loaded. With MS_SIMULATION_LEVEL=1 it calls none of them that
matters. So where there is a CANN toolkit (ASCEND_HOME_PATH, as its set_env.sh sets it) that is used, which is MindSpore's
documented way; elsewhere libraries are built whose functions all return 0. docs/ascend.md says what a dry run shows.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

# symbols.txt: what MindSpore 2.10.0 asks CANN for, when it is loaded and later by name.
SYMBOLS = Path(__file__).with_name("symbols.txt")
WITH_SYMBOLS = ("acl_op_compiler", "acl_tdt_channel", "ascendcl", "ge_runner", "msprofiler", "runtime")
EMPTY = ("ascend_hal", "c_sec", "graph", "hccl", "nnopbase", "platform")
_OF_CANN = re.compile(r"acl[A-Za-z]|Hccl|Hcom|rt[A-Z]|Msprof|tdt|Dlog|CheckLogLevel|_ZNK?2ge")
# The one symbol that must be an object: its first member is a map that MindSpore looks into when it is loaded.
_STATUS = """
#include <map>
#include <string>
namespace ge {
class StatusFactory {
 public:
  static StatusFactory *Instance();
  std::map<unsigned, std::string> messages;
  char rest[4096];
};
StatusFactory *StatusFactory::Instance() { static StatusFactory *one = new StatusFactory; return one; }
}
"""
_STATUS_SYMBOL = "_ZN2ge13StatusFactory8InstanceEv"
# MindSpore's own stand-in for aclrtProcessReport, `int SimuFuncIaclrtProcessReport<int>(int timeout)`, returns at once,
# where the real one waits for a report: four threads call it without end, and took five sixths of a dry run's time.
_REPORTS = """
#include <unistd.h>
int _ZN9mindspore6device6ascend27SimuFuncIaclrtProcessReportIiEET_i(int milliseconds) {
  usleep(1000 * (milliseconds > 0 && milliseconds < 10 ? milliseconds : 10));
  return 0;
}
"""


def environment(folder: Path) -> dict[str, str]:
    """Variables under which `python` finds a simulated NPU; builds the stubs in `folder` if there is no CANN.

    Raises RuntimeError, saying why, when they cannot be built.
    """
    variables = {"MS_SIMULATION_LEVEL": "1", "GLOG_v": os.environ.get("GLOG_v", "3")}
    if has_cann():
        return variables
    library, package = build(folder), folder / "python"
    plugin = _mindspore() / "lib/plugin/ascend"
    memory = plugin / "ms_kernels_symmetric_memory"
    paths = (library, memory / "shmem/shmem/lib", memory / "shmem/memfabric_hybrid/lib", plugin)
    return variables | {"LD_LIBRARY_PATH": _before("LD_LIBRARY_PATH", *paths),
                        "PYTHONPATH": _before("PYTHONPATH", package),
                        "LD_PRELOAD": _before("LD_PRELOAD", library / "libreports.so")}


def has_cann() -> bool:
    """Whether a CANN toolkit is set up."""
    home = os.environ.get("ASCEND_HOME_PATH")
    return bool(home) and any(Path(home).glob("**/libascendcl.so"))


def build(folder: Path) -> Path:
    """Build the libraries and a stand-in for HCCL's Python package in `folder`; returns the libraries' directory."""
    if sys.platform != "linux" or not (_mindspore() / "lib/plugin/ascend").is_dir():
        raise RuntimeError("this MindSpore has no Ascend plug-in")
    if shutil.which("g++") is None:
        raise RuntimeError("there is no g++")
    library = folder / "cann" / "lib64"     # MindSpore looks for "cann" in the path
    library.mkdir(parents=True, exist_ok=True)
    (folder / "stubs.c").write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in symbols()))
    (folder / "status.cc").write_text(_STATUS)
    (folder / "empty.c").write_text("")
    _run("g++", "-x", "c", "-w", "-fno-builtin", "-fPIC", "-c", folder / "stubs.c", "-o", folder / "stubs.o")
    # MindSpore is built with the old string ABI.
    _run("g++", "-D_GLIBCXX_USE_CXX11_ABI=0", "-fPIC", "-c", folder / "status.cc", "-o", folder / "status.o")
    for name in WITH_SYMBOLS + EMPTY:
        content = (folder / "stubs.o", folder / "status.o") if name in WITH_SYMBOLS else (folder / "empty.c",)
        _run("g++", "-shared", "-fPIC", f"-Wl,-soname,lib{name}.so", "-o", library / f"lib{name}.so", *content)
    (folder / "reports.c").write_text(_REPORTS)
    _run("g++", "-x", "c", "-O", "-shared", "-fPIC", "-o", library / "libreports.so", folder / "reports.c")
    hccl = folder / "python" / "hccl"
    hccl.mkdir(parents=True, exist_ok=True)
    (hccl / "__init__.py").write_text("")
    (hccl / "sys_version.py").write_text("__sys_version__ = '9.0.0'\n")
    return library


def symbols() -> list[str]:
    """What the installed MindSpore asks CANN for: the kept list, and with `nm` what its plug-in leaves undefined."""
    names = set(SYMBOLS.read_text().split())
    if shutil.which("nm"):
        folder = _mindspore() / "lib"
        plugin = [*folder.glob("plugin/libmindspore*ascend*"), *folder.glob("plugin/ascend/*.so")]
        undefined = {name for name in _nm("--undefined-only", plugin) if _OF_CANN.match(name)}
        names |= undefined - _nm("--defined-only", [*plugin, *folder.glob("*.so*")])
    return sorted(names - {_STATUS_SYMBOL})


def _nm(which: str, libraries: list[Path]) -> set[str]:
    listing = subprocess.run(["nm", "-D", which, *libraries], capture_output=True, text=True, check=False).stdout
    return {line.split()[-1].partition("@")[0] for line in listing.splitlines() if " " in line}


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the stubs of CANN do not build: {done.stderr.strip()[-500:]}")


def _mindspore() -> Path:
    return Path(importlib.util.find_spec("mindspore").submodule_search_locations[0])


def _before(variable: str, *paths: Path) -> str:
    """The variable's value with `paths` before what it holds."""
    return os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get(variable)])])


def main() -> None:
    """Build into the directory that the command line names, and write env.sh there."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python stubs.py DIR")
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment(folder).items()]
    (folder / "env.sh").write_text("".join(lines))
    print(f"source {folder}/env.sh")


if __name__ == "__main__":
    main()
