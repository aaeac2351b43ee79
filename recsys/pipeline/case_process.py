"""What a process that answers costs: run as a module of its own, so that nothing else is in its memory.

python -m recsys.pipeline.case_process eager CHECKPOINT | release RELEASE | sessions RELEASE, with the number of threads
after it and the lengths of the histories to answer, by commas. `release` keeps nothing of a user; `sessions` keeps the
encoded window of everybody who was answered. Both warm up before they answer, as the endpoint does.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from recsys.contracts.ids import Tokens
from recsys.peak_memory import peak_bytes
from recsys.runtime.engine import Session

_Start = Callable[[Path, int], tuple[Callable[[Tokens], object], int]]
"""From a folder and a number of threads to what answers a history, and the number of items."""
NUM_SESSIONS = 100
"""Users whose sessions are kept, with histories of those lengths in turn."""


def main(kind: str, folder: str, num_threads: str, lengths: str) -> None:
    """Print a line of JSON: seconds from the process's start to the first answer, and the most memory.

    Beside them the number of sessions that are kept, and what these take.
    """
    kept: list[Session] = []
    kinds: dict[str, _Start] = {"eager": _eager, "release": _release, "sessions": partial(_sessions, kept)}
    answer, num_items = kinds[kind](Path(folder), int(num_threads))
    generator = np.random.default_rng(0)
    first_s, answered = 0.0, [int(length) for length in lengths.split(",")]
    for length in islice(cycle(answered), NUM_SESSIONS if kind == "sessions" else len(answered)):
        answer(generator.integers(1, num_items + 1, length).astype(np.int32))
        first_s = first_s or _age_s()
    measured = {
        "load_s": round(first_s, 3),
        "peak_mb": round(peak_bytes() / 1e6, 1),
        "num_sessions": len(kept),
        "sessions_mb": round(sum(session.size_bytes for session in kept) / 1e6, 3),
    }
    print(json.dumps(measured))  # noqa: T201


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
    recommender.warm_up()
    return lambda history: recommender.rank([history], k=10), recommender.release.vocabulary.num_kept


def _sessions(kept: list[Session], release: Path, num_threads: int) -> tuple[Callable[[Tokens], object], int]:
    """Users who come back with one more event: a session is opened, kept in `kept`, and answers after an append."""
    from recsys.pipeline.case_sessions import opened_with
    from recsys.runtime.recommender import Recommender
    from recsys.windows import answer_context

    recommender = Recommender.load(release, num_threads=num_threads)
    recommender.warm_up()
    engine, window = recommender.release.engine, recommender.release.window

    def answer(history: Tokens) -> object:
        start = max(opened_with(len(history), window), len(history) - 1)
        sessions = engine.open([answer_context(history[:start], window)])
        if start < len(history):
            sessions = engine.append(sessions, [history[start:]])
        kept.extend(sessions)
        return recommender.query(sessions[0].vector_D, history).best(10)

    return answer, recommender.release.vocabulary.num_kept


if __name__ == "__main__":
    main(*sys.argv[1:])
