"""What a process that answers costs: run as a module of its own, so that nothing else is in its memory.

python -m recsys.pipeline.case_process eager CHECKPOINT | release RELEASE, with the number of threads after it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recsys.contracts.ids import Tokens
from recsys.peak_memory import peak_bytes

LENGTHS = range(2048, 2765, 102)
"""Histories over one stride: with the fifth of them the open window is full, which costs most memory."""


def main(kind: str, folder: str, num_threads: str) -> None:
    """Print a line of JSON: seconds from the process's start to the first answer, and the most memory."""
    answer, num_items = {"eager": _eager, "release": _release}[kind](Path(folder), int(num_threads))
    generator = np.random.default_rng(0)
    first_s = 0.0
    for length in LENGTHS:
        answer(generator.integers(1, num_items + 1, length).astype(np.int32))
        first_s = first_s or _age_s()
    print(json.dumps({"load_s": round(first_s, 3), "peak_mb": round(peak_bytes() / 1e6, 1)}))  # noqa: T201


def _age_s() -> float:
    """Seconds since this process started, imports included, by Linux' own record of it."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _eager(checkpoint: Path, num_threads: int) -> tuple[Callable[[Tokens], object], int]:
    """The last window in eager float32, every item scored. A window of the whole history is full attention."""
    import torch

    from recsys.model.checkpoint import Checkpoint
    from recsys.model.reference import encode

    torch.set_num_threads(num_threads)
    opened = Checkpoint.open(checkpoint)
    items_VD = opened.model.items_VD.detach().numpy()

    def answer(history: Tokens) -> object:
        vector_D = encode(opened.model, [history[-opened.window.size :]])[0]
        return np.argsort(-(items_VD @ vector_D))[:10]

    return answer, len(opened.vocabulary)


def _release(release: Path, num_threads: int) -> tuple[Callable[[Tokens], object], int]:
    from recsys.runtime.recommender import Recommender

    recommender = Recommender.load(release, num_threads=num_threads)
    return lambda history: recommender.rank([history], k=10), recommender.release.vocabulary.num_kept


if __name__ == "__main__":
    main(*sys.argv[1:])
