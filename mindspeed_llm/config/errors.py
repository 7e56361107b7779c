"""Turning a mistake of the user into one clear line and a non-zero exit."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from mindspeed_llm.config.scheduler import stay_behind

USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError)

_PACKAGE = Path(__file__).resolve().parent.parent


class UserError(ValueError):
    """Something the person at the keyboard can put right: the text says what was wrong, what is allowed, what to do."""


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """A full disk, or whatever else keeps from writing `path`, becomes a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def run_main(main: Callable[[], None]) -> None:
    """Run an entrypoint; any failure ends the process at once with its message and exit code 1.

    The exit of a failure is immediate (`os._exit`) because a rank that lingers in interpreter shutdown keeps its peers
    waiting inside a collective; `msrun` kills the other ranks as soon as one is gone. For the same reason nothing that a
    failed rank registered with `atexit` runs. Success returns: MindSpore's exit hooks must sign the rank off from the
    scheduler, which takes a silent one for dead. The traceback is printed unless our own code raised one of USER_ERRORS
    (then the message says it all); MINDSPEED_LLM_TRACEBACK=1 prints it always.
    """
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        stay_behind()
    where = _who()
    try:
        main()
        sys.stdout.flush()
    except SystemExit as request:
        if isinstance(request.code, str):
            _report(f"{where}{request.code}\n")
        _exit(request.code if isinstance(request.code, int) else 0 if request.code is None else 1)
    except KeyboardInterrupt:
        _report(f"{where}interrupted\n")
        _exit(130)
    except BaseException as error:  # the process boundary: everything must end here, with its message
        _report(_message(error, where))
        _exit(1)


def _who() -> str:
    """Start of a message in a job of several processes; msrun runs the script once more as its scheduler."""
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        return "scheduler: "
    rank = os.environ.get("RANK_ID")
    return f"rank {rank}: " if rank is not None else ""


def _message(error: BaseException, where: str) -> str:
    expected = isinstance(error, UserError) or (isinstance(error, USER_ERRORS) and _raised_by_us(error))
    text = str(error) or type(error).__name__
    if expected and os.environ.get("MINDSPEED_LLM_TRACEBACK") != "1":
        return f"{where}error: {text}\n"
    kind = "" if expected else f"{type(error).__name__}: "
    return "".join(traceback.format_exception(error)) + f"{where}error: {kind}{text}\n"


def _raised_by_us(error: BaseException) -> bool:
    """True when the innermost frame is ours: a ValueError out of a library is a bug whose traceback is needed."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(_PACKAGE)


def _report(text: str) -> None:
    """One write, so that the lines of several ranks on one terminal do not mix."""
    with contextlib.suppress(OSError):  # a closed stdout must not swallow the message
        sys.stdout.flush()
    sys.stderr.write(text)


def _exit(code: int) -> None:
    """End the process, whatever state the streams are in (a closed pipe must not keep a rank alive)."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1
    finally:
        os._exit(code)
