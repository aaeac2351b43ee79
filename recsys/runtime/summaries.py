"""Summaries of closed windows on top of any engine: encoded once, kept by the digest of their events, read again.

A history's `answer_context` is cut into windows here; the vectors that its closed windows leave (see
`recsys/model/summaries.py`) stand ahead of the open window's events. A summary depends on its own window alone, so
it is known by the window's events: no user's name is kept with it, and what changes a window changes its digest.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import safetensors
import safetensors.numpy

from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import Floats, Tokens
from recsys.runtime.engine import Engine, EngineInfo, Session
from recsys.runtime.items import ItemTable
from recsys.windows import WindowConfig, cut, digest, serving_windows

# B batch, M vectors of a summary, D width

_TOGETHER = 64
"""Long histories encoded at a time, which bounds memory."""


@dataclass(frozen=True, slots=True)
class SummaryWeights:
    """What a summary is made with, beside the decoder."""

    FILE_NAME = "summary_weights.safetensors"

    query_MD: Floats
    """Read after a closed window's last event, one after another."""
    project_DD: Floats
    """From the decoder's state after a query to a vector of the summary."""

    def save(self, folder: Path) -> None:
        """Write `summary_weights.safetensors`."""
        safetensors.numpy.save_file({"query": self.query_MD, "project": self.project_DD}, folder / self.FILE_NAME)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ArtifactError: not such a file.
        """
        path = folder / cls.FILE_NAME
        try:
            arrays = safetensors.numpy.load_file(path)
            return cls(arrays["query"], arrays["project"])
        except (OSError, safetensors.SafetensorError, KeyError) as error:
            raise ArtifactError(f"{path}: no weights of summaries: {error}; run `recsys optimize` again") from None


class Stored(Protocol):
    """Summaries that were encoded beforehand."""

    def get(self, window_digest: str) -> Floats | None:
        """That of a window, shape [M, D]."""
        ...


class Summaries:
    """Summaries at hand by the digest of their window. Thread-safe.

    Those encoded here are bounded by bytes, and the least recently used leave first; those stored beforehand stay.
    """

    def __init__(self, stored: Stored | None = None, limit_bytes: int = 64_000_000) -> None:
        self._stored = stored
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._encoded: OrderedDict[str, Floats] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, window_digest: str) -> Floats | None:
        """That of a window, shape [M, D], which now was used last."""
        with self._lock:
            found = self._encoded.get(window_digest)
            if found is not None:
                self._encoded.move_to_end(window_digest)
                return found
        return None if self._stored is None else self._stored.get(window_digest)

    def put(self, window_digest: str, summary_MD: Floats) -> None:
        """Keep a copy of one: a view would keep all that were encoded with it."""
        with self._lock:
            if window_digest not in self._encoded:
                self._encoded[window_digest] = summary_MD.copy()
                self._size_bytes += summary_MD.nbytes
            while self._size_bytes > self._limit_bytes:
                self._size_bytes -= self._encoded.popitem(last=False)[1].nbytes

    def drop(self, window_digest: str) -> None:
        """Forget one, if it was encoded here."""
        with self._lock:
            summary_MD = self._encoded.pop(window_digest, None)
            self._size_bytes -= 0 if summary_MD is None else summary_MD.nbytes


class SummaryEngine:
    """An `Engine` whose windows may be longer than one: an `answer_context`, summaries and all. Thread-safe.

    `encode` and `open` encode the summaries that are not at hand, which takes as long as a window each; `open_at_once`
    is for who cannot wait.
    """

    def __init__(
        self, engine: Engine, items: ItemTable, weights: SummaryWeights, window: WindowConfig, at_hand: Summaries
    ) -> None:
        self._engine = engine
        self._items = items
        self._weights = weights
        self._window = window
        self.at_hand = at_hand

    @property
    def info(self) -> EngineInfo:
        """That of the engine below; its windows are as long as they may be without what is ahead of them."""
        return replace(self._engine.info, window_size=self._window.size)

    def encode(self, windows: Sequence[Tokens]) -> Floats:
        """One user vector per context, shape [B, D]. None is empty."""
        vectors_BD = np.empty((len(windows), self._engine.info.width), dtype=np.float32)
        for places, rows, _ in self._read(windows):
            vectors_BD[places] = self._engine.encode(rows)
        return vectors_BD

    def open(self, windows: Sequence[Tokens]) -> list[Session]:
        """See `Engine.open`; a session is of the context's last window."""
        sessions: dict[int, Session] = {}
        for places, rows, num_ahead in self._read(windows):
            opened = self._engine.open(rows)
            sessions |= {i: _above(one, ahead) for i, one, ahead in zip(places, opened, num_ahead, strict=True)}
        return [sessions[i] for i in range(len(windows))]

    def open_at_once(self, context: Tokens) -> tuple[Session, bool]:
        """A session of the last window, and whether it read no summaries because not all of them were at hand."""
        *closed, last = self._cut(context)
        found = [self.at_hand.get(digest(window)) for window in closed]
        ahead = [summary_MD for summary_MD in found if summary_MD is not None]
        if not closed or len(ahead) < len(closed):
            return _above(self._engine.open([last])[0], 0), bool(closed)
        row: Any = np.concatenate([*ahead, self._items.embed(last)])
        return _above(self._engine.open([row])[0], len(row) - len(last)), False

    def append(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        """See `Engine.append`."""
        for session, new in zip(sessions, events, strict=True):
            if session.length + len(new) > self._window.size:
                raise ValueError(
                    f"{session.length} events and {len(new)} more do not fit into a window of {self._window.size}; "
                    "open the next window"
                )
        below = [session.cache for session in sessions]
        longer = self._engine.append(below, events)
        return [
            _above(one, before.length - session.length)
            for one, before, session in zip(longer, below, sessions, strict=True)
        ]

    def kept(self, session: Session) -> Floats:
        """See `Engine.kept`."""
        below: Session = session.cache
        return self._engine.kept(below)[below.length - session.length :]

    def warm_up(self) -> None:
        """See `Engine.warm_up`."""
        self._engine.warm_up()

    def prepare(self, contexts: Sequence[Tokens]) -> int:
        """Encode and keep the summaries that are not at hand; how many that were."""
        closed = {digest(window): window for context in contexts for window in self._cut(context)[:-1]}
        missing = [window for name, window in closed.items() if self.at_hand.get(name) is None]
        self._known(missing)
        return len(missing)

    def forget(self, history: Tokens) -> None:
        """Drop what was encoded here of any closed window of a history."""
        for window in cut(len(history), self._window)[:-1]:
            self.at_hand.drop(digest(history[window.start : window.stop]))

    def summaries(self, closed: Sequence[Tokens]) -> Floats:
        """Of full windows, encoded now, shape [B, M, D]."""
        query_MD, width = self._weights.query_MD, self._engine.info.width
        states_BMD = np.empty((len(closed), len(query_MD), width), dtype=np.float32)
        for start in range(0, len(closed), _TOGETHER):
            some = closed[start : start + _TOGETHER]
            rows = [np.concatenate([self._items.embed(window), query_MD[:1]]) for window in some]
            if len(query_MD) == 1:
                states_BMD[start : start + len(some), 0] = self._engine.encode(rows)
                continue
            sessions = self._engine.open(rows)
            states_BMD[start : start + len(some), 0] = [session.vector_D for session in sessions]
            for m in range(1, len(query_MD)):
                queries: list[Any] = [query_MD[m : m + 1]] * len(some)
                sessions = self._engine.append(sessions, queries)
                states_BMD[start : start + len(some), m] = [session.vector_D for session in sessions]
        summaries_BMD: Floats = states_BMD @ self._weights.project_DD.T
        return summaries_BMD

    def _cut(self, context: Tokens) -> list[Tokens]:
        """The windows of a context, the open one last."""
        return [context[window.start : window.stop] for window in serving_windows(len(context), self._window)]

    def _read(self, contexts: Sequence[Tokens]) -> Iterator[tuple[list[int], list[Any], list[int]]]:
        """Places of contexts, what the engine reads for them, and how many vectors of that are ahead of the events."""
        short = [i for i, context in enumerate(contexts) if len(context) <= self._window.size]
        if short:
            yield short, [contexts[i] for i in short], [0] * len(short)
        longer = sorted(set(range(len(contexts))) - set(short), key=lambda i: len(contexts[i]))
        for start in range(0, len(longer), _TOGETHER):
            places = longer[start : start + _TOGETHER]
            cuts = [self._cut(contexts[i]) for i in places]
            known = self._known([window for cut in cuts for window in cut[:-1]])
            ahead = [np.concatenate([known[digest(window)] for window in cut[:-1]]) for cut in cuts]
            rows = [np.concatenate([part, self._items.embed(cut[-1])]) for part, cut in zip(ahead, cuts, strict=True)]
            yield places, rows, [len(part) for part in ahead]

    def _known(self, closed: Sequence[Tokens]) -> dict[str, Floats]:
        """Summaries by digest; those that are not at hand are encoded, and kept."""
        windows = {digest(window): window for window in closed}
        known = {name: self.at_hand.get(name) for name in windows}
        missing = [name for name, summary_MD in known.items() if summary_MD is None]
        for name, summary_MD in zip(missing, self.summaries([windows[name] for name in missing]), strict=True):
            self.at_hand.put(name, summary_MD)
            known[name] = summary_MD
        return {name: summary_MD for name, summary_MD in known.items() if summary_MD is not None}


def _above(below: Session, num_ahead: int) -> Session:
    """A session as it is known above the engine: its length counts events alone."""
    return Session(below.vector_D, below.length - num_ahead, below.size_bytes, below)
