"""Users who come back: kept sessions that grow by new events. Without torch, as a process that serves."""

from collections.abc import Iterator, Sequence

import numpy as np

from recsys.contracts.ids import Floats, Tokens
from recsys.runtime.engine import Session
from recsys.runtime.release import Release
from recsys.windows import WindowConfig, answer_context, num_windows, window_at

# B users, D width

_TOGETHER = 64
"""Sessions that grow at a time, which bounds memory."""


def grown(release: Release, histories: Sequence[Tokens]) -> Floats:
    """User vectors of kept histories, none empty, from sessions as old as they can be, shape [B, D].

    A session is opened when its window opened; every event since is appended by itself, as for a user who stays.
    """
    starts = [opened_with(len(history), release.window) for history in histories]
    by_growth = sorted(range(len(histories)), key=lambda i: len(histories[i]) - starts[i])
    vectors_BD = np.empty((len(histories), release.engine.info.width), dtype=np.float32)
    for at in range(0, len(by_growth), _TOGETHER):
        for i, session in _sessions(release, histories, starts, by_growth[at : at + _TOGETHER]):
            vectors_BD[i] = session.vector_D
    return vectors_BD


def opened_with(num_events: int, window: WindowConfig) -> int:
    """Events of a history when its open window opened: one, or up to the first that the window before cannot hold."""
    last = window_at(num_windows(num_events, window) - 1, num_events, window)
    return last.first_target + 1 if last.k else 1


def _sessions(
    release: Release, histories: Sequence[Tokens], starts: Sequence[int], chosen: Sequence[int]
) -> Iterator[tuple[int, Session]]:
    """Place and session of the chosen histories, all events of each in it."""
    opened = release.engine.open([answer_context(histories[i][: starts[i]], release.window) for i in chosen])
    sessions = dict(zip(chosen, opened, strict=True))
    for step in range(max(len(histories[i]) - starts[i] for i in chosen)):
        growing = [i for i in chosen if starts[i] + step < len(histories[i])]
        new = [histories[i][starts[i] + step :][:1] for i in growing]
        longer = release.engine.append([sessions[i] for i in growing], new)
        sessions.update(zip(growing, longer, strict=True))
    yield from sessions.items()
