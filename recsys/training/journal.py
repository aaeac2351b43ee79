"""Events for TensorBoard: `tensorboard --logdir FOLDER` shows a run while it trains, and afterwards."""

import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recsys.contracts.errors import ConfigError
from recsys.training.fitted import RoundResult

FOLDER = "events"


class Journal:
    """The scalars of each round, at `.NAME.events` beside the checkpoint's place until it is written.

    Without `wanted` it is kept if tensorboardX is installed; where it is not kept, all of this does nothing.

    Raises:
        ConfigError: wanted, and tensorboardX is not installed.
    """

    def __init__(self, out: Path, wanted: bool | None) -> None:
        self._place = out.parent / f".{out.name}.events"
        self._writer: Any = None
        found = find_spec("tensorboardX") is not None
        if wanted and not found:
            raise ConfigError("tensorboard = true: tensorboardX is not installed; pip install 'recsys[tensorboard]'")
        if found and wanted is not False:
            from tensorboardX import SummaryWriter

            shutil.rmtree(self._place, ignore_errors=True)
            self._writer = SummaryWriter(str(self._place))

    def add(self, row: RoundResult) -> None:
        """Write a round; it can be seen at once."""
        if self._writer is None:
            return
        for name, value in asdict(row).items():
            if name != "round" and value is not None:
                self._writer.add_scalar(name, value, row.round)
        self._writer.flush()

    def move_into(self, folder: Path) -> None:
        """The events become part of a checkpoint."""
        if self._writer is not None:
            self._writer.close()
            shutil.move(self._place, folder / FOLDER)
