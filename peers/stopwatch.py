"""Times a peer's own training loop: real tokens a second, and the process's peak memory."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_BATCHES = 3


def stopwatch(callback_class: type, count: Callable[[Any], int], seconds: float, out: str) -> Any:
    """A Lightning callback that stops training after `seconds`, and then writes what it saw.

    `count` gives the predicted events of a batch, padding left out. The first batches are not timed.
    """

    class Stopwatch(callback_class):  # type: ignore[misc]
        tokens, started, batches = 0, 0.0, 0

        def on_train_batch_end(self, trainer: Any, _module: Any, _outputs: Any, batch: Any, _batch_idx: int) -> None:
            self.batches += 1
            if self.batches == WARM_BATCHES:
                self.started = time.perf_counter()
            elif self.batches > WARM_BATCHES:
                self.tokens += count(batch)
                elapsed = time.perf_counter() - self.started
                if elapsed > seconds and not trainer.should_stop:
                    trainer.should_stop = True
                    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    values = {"tokens": self.tokens, "seconds": elapsed, "peak_mb": peak_mb}
                    Path(out).write_text(json.dumps(values))

    return Stopwatch()
