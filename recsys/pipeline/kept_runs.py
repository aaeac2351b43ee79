"""Finished trainings of a comparison in a folder, so that a killed one goes on and rivals can be added one by one."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.contracts.errors import DataError
from recsys.contracts.files import write_text
from recsys.evaluation import looks
from recsys.training.config import METHOD

Run = dict[str, Any]
"""One training: each metric's value of every user as an array, and single numbers."""


@contextmanager
def workplace(out: Path | None) -> Iterator[Path]:
    """`out`, which stays, or without it a folder that is removed."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="recsys-") as folder:
        yield Path(folder)


def same_settings(note: Path, settings: Run) -> None:
    """Note what the trainings of a folder have in common, or see that it is this.

    Raises:
        DataError: the folder is of other settings.
    """
    settings = {**settings, "method": METHOD}
    if not note.exists():
        write_text(note, json.dumps(settings))
    elif (known := json.loads(note.read_text())) != settings:
        raise DataError(f"{note}: a run with {_changed(known, settings)}, or of an older version; give another --out")


def kept_looks(out: Path | None) -> Run:
    """Logs of looks at test sets below a folder that stays, and the number of looks; None where nothing stays."""
    if out is None:
        return {"evaluation_logs": None}
    logs = sorted(out.rglob(looks.LOG_FILE))
    return {"evaluation_logs": [str(log) for log in logs], "num_looks": sum(len(looks.read(log)) for log in logs)}


def _changed(known: Run, settings: Run) -> str:
    return "another " + " and ".join(key for key in settings if known.get(key) != settings[key])


@dataclass(frozen=True, slots=True)
class KeptRuns:
    """What is finished, if anything is kept at all."""

    folder: Path | None
    """None: nothing is kept."""
    settings: dict[str, Any]
    """What all of them have in common."""

    def read(self, name: str, seed: int) -> Run | None:
        """A finished training, or None.

        Raises:
            DataError: the folder holds one with other settings.
        """
        path = self._path(name, seed)
        if path is None or not path.exists():
            return None
        stored, settings = json.loads(path.read_text()), self._settings
        if stored["settings"] != settings:
            raise DataError(
                f"{path}: a training with {_changed(stored['settings'], settings)}, or of an older "
                "version; give another --out"
            )
        return {key: np.array(value) if isinstance(value, list) else value for key, value in stored["run"].items()}

    def write(self, name: str, seed: int, run: Run) -> None:
        """Keep a finished training; the file is there whole or not at all."""
        path = self._path(name, seed)
        if path is None:
            return
        plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in run.items()}
        write_text(path, json.dumps({"settings": self._settings, "run": plain}))

    @property
    def _settings(self) -> dict[str, Any]:
        return {**self.settings, "method": METHOD}

    def _path(self, name: str, seed: int) -> Path | None:
        return None if self.folder is None else self.folder / f"{name.replace(' ', '-')}-{seed}.json"
