"""The speed of training alone: real tokens a second, and the process's peak memory.

Run in a process of its own, as the peers are: `python -m recsys.training.speed FEATURES OUT.json SECONDS THREADS`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from recsys import dataset
from recsys.contracts.protocol import Protocol
from recsys.model.summaries import build_model
from recsys.peak_memory import peak_bytes
from recsys.training.config import Recipe
from recsys.training.loop import Trainer, WindowStream

LENGTH: Final = 200
"""Events that are read; a window holds one more, which is only predicted."""
WARM_STEPS: Final = 3


def recipe() -> Recipe:
    """The default recipe, with windows as long as the peers' sequences."""
    values = Recipe.load("default").model_dump()
    return Recipe.from_mapping({**values, "window": {"size": LENGTH + 1}}, "speed")


def run(features: Path, seconds: float, num_threads: int) -> dict[str, Any]:
    """Train for so long; the first steps are not timed. Nothing is validated or written."""
    torch.set_num_threads(num_threads)
    data = dataset.load(features, Protocol.FINAL)
    settings = recipe()
    model = build_model(settings.model, len(data.vocabulary), settings.window)
    stream = WindowStream(data.fit, settings, np.random.default_rng(settings.training.seed))
    num_events_V = torch.from_numpy(np.bincount(data.fit.tokens, minlength=len(data.vocabulary) + 1)[1:])
    trainer = Trainer(model, settings, num_events_V, horizon=stream.epoch_steps)
    trainer.train(stream, WARM_STEPS)
    stretch = trainer.train(stream, sys.maxsize, deadline=time.monotonic() + seconds)
    peak_mb = peak_bytes() / 2**20
    return {"tokens": stretch.tokens, "seconds": stretch.seconds, "peak_mb": peak_mb}


if __name__ == "__main__":
    found = run(Path(sys.argv[1]), float(sys.argv[3]), int(sys.argv[4]))
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
