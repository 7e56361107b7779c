"""`--map-keys`: what the columns, the keys of a turn and the roles are called in the user's file.

The meanings are those of MindSpeed-LLM and LLaMA-Factory: prompt, query, response, history, system, tools, messages,
chosen, rejected; and under "tags" role_tag, content_tag, user_tag, assistant_tag, system_tag, observation_tag,
function_tag.
"""

from mindspeed_llm.config.errors import UserError

# meaning -> what the handlers call the column, the key of a turn, the role
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system",
           "tools": "tools", "messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
TURN_KEYS = {"role_tag": "from", "content_tag": "value"}
ROLE_NAMES = {"user_tag": "human", "assistant_tag": "gpt", "system_tag": "system", "observation_tag": "observation",
              "function_tag": "function_call"}
TURN_COLUMNS = ("conversations", "chosen", "rejected")


class ColumnMap:
    """Gives rows the names that handlers know.

    Args:
        given: meaning -> name in the file, "" for a column that is not to be read; under "tags" the same for turns.

    Raises:
        UserError: an unknown meaning, a name that is no text.
    """

    def __init__(self, given: dict | None):
        given = dict(given or {})
        tags = given.pop("tags", {})
        if not isinstance(tags, dict):
            raise UserError(f"--map-keys: tags holds {tags!r}, an object is wanted")
        _check(given, tuple(COLUMNS) + ("tags",))
        _check(tags, (*TURN_KEYS, *ROLE_NAMES))
        self._columns = {COLUMNS[meaning]: name for meaning, name in given.items()}
        self._keys = {TURN_KEYS[meaning]: name for meaning, name in tags.items() if meaning in TURN_KEYS}
        self._roles = {name: ROLE_NAMES[meaning] for meaning, name in tags.items() if meaning in ROLE_NAMES}

    def name_in_file(self, column: str) -> str:
        """What a handler's column is called in the file; "" if it is not to be read."""
        return self._columns.get(column, column)

    def apply(self, row: dict) -> dict:
        """The row with the handlers' names."""
        renamed = row
        if self._columns:
            renamed = {column: value for column, value in row.items() if column not in self._columns}
            renamed |= {column: row[name] for column, name in self._columns.items() if name in row}
        if self._keys or self._roles:
            renamed = renamed | {column: self._turns(renamed[column]) for column in TURN_COLUMNS if column in renamed}
        return renamed

    def _turns(self, value: object) -> object:
        if isinstance(value, list):
            return [self._turn(turn) for turn in value]
        return self._turn(value)

    def _turn(self, turn: object) -> object:
        if not isinstance(turn, dict):
            return turn
        renamed = {key: value for key, value in turn.items() if key not in self._keys.values()}
        renamed |= {key: turn[name] for key, name in self._keys.items() if name in turn}
        role = renamed.get("from")
        return renamed | {"from": self._roles.get(role, role)} if isinstance(role, str) else renamed


def _check(given: dict, known: tuple[str, ...]) -> None:
    for meaning, name in given.items():
        if meaning not in known:
            raise UserError(f"--map-keys: {meaning!r} is not known: use {', '.join(known)}")
        if not isinstance(name, str):
            raise UserError(f"--map-keys: {meaning} is {name!r}: the name of a column is wanted, or \"\" for none")
