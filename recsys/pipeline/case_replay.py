"""RePlay's compiled SasRec of equal width and layers, timed in its own environment on one user of 2,048 events."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from recsys.contracts.errors import DataError
from recsys.model.config import ModelConfig

PYTHON: Final = Path(".venv-peers/replay/bin/python")
SCRIPT: Final = Path("peers/replay_serve.py")
TIMEOUT_S: Final = 300


def run(
    model: ModelConfig, num_items: int, num_events: int, num_threads: int, num_rounds: int
) -> dict[str, float] | None:
    """Its median milliseconds, seconds until the first answer and peak memory; None where it is not installed.

    Raises:
        DataError: it is installed and failed.
    """
    if not (PYTHON.exists() and SCRIPT.exists()):
        return None
    shape = (num_items, model.width, model.num_layers, model.num_heads, num_events, num_threads, num_rounds)
    with tempfile.TemporaryDirectory(prefix="recsys-replay-") as folder:
        out = Path(folder) / "replay.json"
        done = subprocess.run(  # noqa: S603
            [str(PYTHON), str(SCRIPT), str(out), *map(str, shape)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "OMP_NUM_THREADS": str(num_threads)},
        )
        if done.returncode or not out.exists():
            raise DataError(f"{SCRIPT} failed: {done.stderr[-300:]}; run `make peers` again, or it by hand to see why")
        found: dict[str, float] = json.loads(out.read_text())
    return {name: round(value, 3) for name, value in found.items()}
