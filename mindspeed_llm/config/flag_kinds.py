"""Kinds of values of command-line flags."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """How the text after a flag becomes a value.

    `convert` takes one string, or a list of strings when `nargs` is `+` or `append` is set; it raises ValueError with
    the end of a sentence ("must be a whole number") that the parser starts with the flag and its text.
    """

    metavar: str
    convert: Callable[[Any], Any]
    nargs: str | None = None
    const: str | None = None
    append: bool = False


def integer(low: int | None = None, high: int | None = None) -> Kind:
    """A whole number in `low..high`, both included."""
    return Kind("N", lambda text: _bounded(text, int, "a whole number", low, high))


def number(low: float | None = None, high: float | None = None, above: float | None = None,
           below: float | None = None) -> Kind:
    """A real number with `low <= x <= high` and `above < x < below`. NaN is refused."""
    return Kind("X", lambda text: _bounded(text, float, "a number", low, high, above, below))


def text() -> Kind:
    """Any non-empty text."""
    return Kind("TEXT", _non_empty)


def path() -> Kind:
    """A file or directory. Empty, as from an unset shell variable, means not given."""
    return Kind("PATH", lambda value: value.strip() or None, nargs="?", const="")


def choice(*allowed: str) -> Kind:
    """One of `allowed`."""
    return Kind("{" + ",".join(allowed) + "}", lambda value: _one_of(value, allowed))


def switch(value: bool = True) -> Kind:
    """A flag that stores `value` when given. `--flag=false` takes an earlier `--flag` back."""
    return Kind("", lambda given: _truth(given) == value, nargs="?", const="true")


def always() -> Kind:
    """A switch for what is always so in GLM4: it may be given, not denied."""
    return Kind("", _always, nargs="?", const="true")


def integers() -> Kind:
    """Whole numbers separated by commas: `22,18` -> (22, 18)."""
    return Kind("N,N,...", _integers)


def numbers(low: int) -> Kind:
    """One or several whole numbers of at least `low`, as words: `0 1 2` -> (0, 1, 2)."""
    return Kind("N", lambda values: tuple(_bounded(value, int, "whole numbers", low, None) for value in values),
                nargs="+")


def words(*allowed: str) -> Kind:
    """One or several words, each one of `allowed` where that is given -> tuple."""
    metavar = "{" + ",".join(allowed) + "}" if allowed else "TEXT"
    return Kind(metavar, lambda values: tuple(_one_of(v, allowed) if allowed else _non_empty(v) for v in values),
                nargs="+")


def single_word(*allowed: str) -> Kind:
    """A list flag of which only one entry per run is supported."""
    metavar = "{" + ",".join(allowed) + "}" if allowed else "PATH"
    return Kind(metavar, lambda values: _single(values, allowed), nargs="+")


def repeated_text() -> Kind:
    """A flag that may be given several times; every text is kept -> tuple."""
    return Kind("TEXT", lambda values: tuple(_non_empty(v) for v in values), append=True)


def json_object() -> Kind:
    """A JSON object -> dict."""
    return Kind("JSON", _json_object)


def shares() -> Kind:
    """Three non-negative numbers separated by commas: train, validation and test share."""
    return Kind("TRAIN,VALID,TEST", _shares)


def zero() -> Kind:
    """A number of which only 0 is supported."""
    return Kind("0.0", _zero)


def _bounded(value: str, number_type: type, what: str, low: float | None, high: float | None,
             above: float | None = None, below: float | None = None) -> Any:
    limits = [f"{word} {limit}" for word, limit in (("at least", low), ("at most", high), ("above", above),
                                                    ("below", below)) if limit is not None]
    allowed = f"must be {what}" + (" " + " and ".join(limits) if limits else "")
    try:
        parsed = number_type(value)
    except ValueError:
        raise ValueError(allowed) from None
    inside = ((low is None or parsed >= low) and (high is None or parsed <= high)
              and (above is None or parsed > above) and (below is None or parsed < below))
    if not inside or parsed != parsed or parsed in (float("inf"), float("-inf")):
        raise ValueError(allowed)
    return parsed


def _non_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty: is a shell variable unset?")
    return value


def _one_of(value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError("must be " + " or ".join(allowed))
    return value


def _truth(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError("is a switch: give no value, or true or false")
    return value.lower() == "true"


def _always(value: str) -> bool:
    if not _truth(value):
        raise ValueError("is always on for GLM4: leave it out or give no value")
    return True


def _integers(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise ValueError("must be whole numbers separated by commas, without spaces") from None


def _single(values: list[str], allowed: tuple[str, ...]) -> str:
    if len(values) != 1:
        raise ValueError("takes one entry per run: run once for each")
    return _one_of(values[0], allowed) if allowed else _non_empty(values[0])


def _shares(value: str) -> str:
    try:
        parts = [float(part) for part in value.split(",")]
    except ValueError:
        parts = []
    if len(parts) != 3 or not all(0 <= part < float("inf") for part in parts) or sum(parts) <= 0:
        raise ValueError("must be three non-negative numbers separated by commas, such as 100,0,0")
    return value


def _json_object(value: str) -> dict:
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError("""must be a JSON object in single quotes, such as '{"prompt": "question"}'""")
    return parsed


def _zero(value: str) -> float:
    try:
        parsed = float(value)
    except ValueError:
        parsed = 1.0
    if parsed != 0.0:
        raise ValueError("must be 0.0: dropout is not used in GLM4 training")
    return 0.0
