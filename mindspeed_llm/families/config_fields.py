"""Reading single entries of a config.json with a message that names them."""

from mindspeed_llm.config.errors import UserError

_MISSING = object()


def entry(config: dict, name: str, kind: type, where: str, default: object = _MISSING) -> object:
    """Entry `name` as `kind` (int, float, bool); `default` when absent. Raises UserError naming file and entry."""
    value = config.get(name)
    if value is None:
        if default is _MISSING:
            raise UserError(f"{where} has no entry {name!r}: a config.json of this layout must give it")
        return default
    good = isinstance(value, bool) if kind is bool else isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and isinstance(value, float):
        good = False
    if not good:
        raise UserError(f"{where}: entry {name!r} is {value!r}, {kind.__name__} expected")
    return kind(value)


def require(config: dict, name: str, wanted: object, where: str, default: object) -> None:
    """Raise UserError when entry `name` (or its `default`) says that the model is not one of those built here."""
    value = config.get(name, default)
    if value != wanted:
        raise UserError(f"{where}: {name} is {value!r}, only {wanted!r} is supported")
