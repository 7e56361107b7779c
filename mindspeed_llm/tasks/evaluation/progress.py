"""Going on after a kill: the results of each finished subject, beside the settings that they were made with."""

import json
import shutil
from pathlib import Path

from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.evaluation.results import SubjectResult


class Progress:
    """`<output-dir>/<task>_progress/`: `settings.json`, and `<n>.json` for the n-th finished subject. Rank 0 alone has
    one.

    settings: all that the answers depend on, JSON-ready. Each file appears whole or not at all.
    """

    def __init__(self, directory: str, task: str, settings: dict) -> None:
        self._folder, self._settings = Path(directory) / f"{task}_progress", json.loads(json.dumps(settings))
        self._count = 0

    def finished(self) -> dict[str, SubjectResult]:
        """The subjects of an evaluation that was ended, by name. Begins a new one where there is none.

        Raises UserError when it was made with other settings.
        """
        file = self._folder / "settings.json"
        if not file.is_file():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            write_text(file, json.dumps(self._settings, indent=2) + "\n")
            return {}
        before = json.loads(file.read_text(encoding="utf-8"))
        if before != self._settings:
            changed = [f"{name} was {before.get(name)!r}, is {self._settings.get(name)!r}"
                       for name in dict.fromkeys([*before, *self._settings])
                       if before.get(name) != self._settings.get(name)]
            raise UserError(f"--output-dir: {self._folder} holds an unfinished evaluation with other settings "
                            f"({'; '.join(changed)}): remove it to begin anew, or give another --output-dir")
        files = sorted(self._folder.glob("[0-9]*.json"))
        self._count = len(files)
        results = [SubjectResult.from_dict(json.loads(entry.read_text(encoding="utf-8"))) for entry in files]
        return {result.name: result for result in results}

    def keep(self, result: SubjectResult) -> None:
        """Write the results of one more subject."""
        write_text(self._folder / f"{self._count:04d}.json", json.dumps(result.to_dict()))
        self._count += 1

    def close(self) -> None:
        """The evaluation is complete and written: nothing to go on with."""
        shutil.rmtree(self._folder)
