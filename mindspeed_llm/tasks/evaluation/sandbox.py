"""What stands around a program of `code_execution`: a script of the standard library alone, in a process of its own.

    python -I -B sandbox.py SECONDS FOLDER [namespaces] < program

FOLDER is an empty directory. With `namespaces` (Linux; as root or where a user may have namespaces of his own) the
program has a file system of its own, with nothing in it but the interpreter and the system's libraries, all read-only,
and 64 MiB to write to; processes and a network of its own; no privileges. A process that the program cannot reach waits
for it, and all that the program has started ends with that. Without `namespaces` the program begins in FOLDER, and what
holds are the time and `LIMITS`. Started by root it is nobody in either case, because root's processes and signals know
no limits; without namespaces it then may read all files, as Python's may lie where only root comes.

Exit status: `PASSED` when the program came to its end; another where it fails, leaves early or is stopped.
"""

import ctypes
import os
import resource
import signal
import sys
import time
import types

PASSED = 42  # not 0: a program that calls exit() has not come to its end
LIMITS = {resource.RLIMIT_AS: 1 << 30, resource.RLIMIT_FSIZE: 16 << 20,  # bytes of a process, of a file
          resource.RLIMIT_NPROC: 8, resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CORE: 0}
NOBODY = 65534

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h
NEW_USER, NEW_REST = 0x10000000, 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
READ_ONLY, NO_SUID, NO_DEV, REMOUNT, BIND, ALL_BELOW, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
RELATIVE_TIMES, STRICT_TIMES = 1 << 21, 1 << 24
DETACH = 2
DEATH_SIGNAL, KEEP_CAPABILITIES, DROP_BOUND, CHILD_SUBREAPER, NO_NEW_PRIVILEGES = 1, 8, 24, 36, 38
CAPABILITIES_3, READ_ALL = 0x20080522, 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """See the module."""
    seconds, folder, program = int(sys.argv[1]), sys.argv[2], sys.stdin.buffer.read()
    os.chdir(folder)
    isolated = sys.argv[3:] == ["namespaces"]
    if isolated:
        _new_namespaces()
        _call("prctl", DEATH_SIGNAL, signal.SIGKILL)  # this process is the first of its namespace: all end with it
        _new_root(folder)
    else:
        _call("prctl", CHILD_SUBREAPER, 1)            # what the program leaves behind becomes a child of this process
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        _run(program, seconds, isolated)
    code = _wait(child, seconds)
    if not isolated:
        _end_children()
    os._exit(code)


def _run(program: bytes, seconds: int, isolated: bool) -> None:
    """Does not return."""
    code = 1
    try:
        os.environ.update(HOME=os.getcwd(), TMPDIR=os.getcwd())
        _give_up_privileges(isolated)
        _call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        for limit, value in {resource.RLIMIT_CPU: seconds, **LIMITS}.items():
            hard = resource.getrlimit(limit)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "program.py", "exec"), module.__dict__)
        code = PASSED
    finally:
        os._exit(code)


def _wait(child: int, seconds: int) -> int:
    """The exit status of a child; 1 when it was ended or has to be after `seconds`. Other children are reaped."""
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return max(os.waitstatus_to_exitcode(status), 0) or 1
        if not pid and signal.sigtimedwait([signal.SIGCHLD], max(0, end - time.monotonic())) is None:
            return 1


def _end_children() -> None:
    """End the children of this process and theirs."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with open(f"/proc/self/task/{os.getpid()}/children") as stream:
            children = list(map(int, stream.read().split()))
        if not children:
            return
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


def _new_namespaces() -> None:
    """Returns in a child that is the first process of namespaces of its own; this process waits for it.

    Raises OSError where the system does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", NEW_REST | (0 if user == 0 else NEW_USER))
    except PermissionError:
        _call("unshare", NEW_REST | NEW_USER)
    if os.geteuid() != user:  # nobody, until it is said who
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{file}", "w") as stream:
                stream.write(text)
    child = os.fork()
    if child:
        os._exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0) or 1)


def _new_root(folder: str) -> None:
    """Change to a root file system in memory, with what Python needs, read-only, and a directory to write to."""
    _call("mount", b"none", b"/", None, ALL_BELOW | PRIVATE, None)
    _call("mount", b"tmpfs", folder.encode(), b"tmpfs", NO_SUID | NO_DEV, b"size=64m,mode=755")
    shown: list[str] = []
    for path in ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", sys.base_prefix, sys.prefix, "/dev/null",
                 "/dev/urandom"):
        if os.path.exists(path) and not any(path == other or path.startswith(other + "/") for other in shown):
            shown.append(path)
            _show(path, folder + path)
    for mount in _mounts_below(folder + "/"):
        _call("mount", None, mount.encode(), None, BIND | REMOUNT | READ_ONLY | _kept_flags(mount), None)
    for name in ("tmp", "work"):
        os.makedirs(f"{folder}/{name}", exist_ok=True)
        os.chmod(f"{folder}/{name}", 0o777)
    os.chdir(folder)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", DETACH)
    os.chdir("/work")


def _show(path: str, place: str) -> None:
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), place)
        return
    if os.path.isdir(path):
        os.makedirs(place, exist_ok=True)
    else:
        os.close(os.open(place, os.O_CREAT))
    _call("mount", path.encode(), place.encode(), None, BIND | ALL_BELOW, None)


def _mounts_below(folder: str) -> list[str]:
    with open("/proc/self/mountinfo") as stream:
        places = [line.split()[4].encode().decode("unicode_escape") for line in stream]
    return [place for place in places if place.startswith(folder)]


def _kept_flags(mount: str) -> int:
    """The flags of a mount that its user may not take away."""
    have = os.statvfs(mount).f_flag
    times = os.ST_NOATIME | os.ST_NODIRATIME
    kept = have & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | times)  # the same bits as mount's
    return kept | (0 if have & os.ST_NOATIME else RELATIVE_TIMES if have & os.ST_RELATIME else STRICT_TIMES)


def _give_up_privileges(isolated: bool) -> None:
    """Be nobody where this process is root, and without capabilities; see the module for the one that is kept.

    Raises OSError where root may not become nobody.
    """
    bound = 0
    while _libc.prctl(DROP_BOUND, bound, 0, 0, 0) == 0:
        bound += 1
    if os.geteuid() == 0:
        try:
            _call("prctl", KEEP_CAPABILITIES, 1, 0, 0, 0)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError:
            if not isolated:  # in a namespace of a user there is no one else to be
                raise
    none = [0] * 6
    for kept in ([none] if isolated else [[READ_ALL, READ_ALL, 0, 0, 0, 0], none]):  # effective, permitted, inheritable
        if _libc.capset((ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)(*kept)) == 0:
            return
    raise OSError("capset")


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
