"""What is kept of a user between requests: the history as tokens, and its open window encoded.

A session is known by (release, user, window k, digest of its events). Each request compares the user's event
count and last sequence number in the store, so several workers agree; what is missing is appended, and
anything else (a late event, a forgotten one, a window that closed) is noticed by the digest and encoded again.

Under a release whose windows leave summaries, those of closed windows are in the digest too. No request waits for
one: where they are not at hand the open window is encoded alone, its answers are partial, and `complete`, called behind
an answer, encodes the summaries and the session with them.
"""

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from recsys.contracts.ids import PAD, Tokens
from recsys.runtime.engine import Session
from recsys.runtime.release import Release
from recsys.runtime.summaries import SummaryEngine
from recsys.store import HISTORY_CAP, Glance, StoredHistory
from recsys.windows import answer_context, digest, num_windows
from serving.batching import AppendBatcher
from serving.forgetting import UsersAtWork, Watch
from serving.ranking import Ranking

Outcome = Literal["unchanged", "appended", "opened"]
_MOST_APPENDED = 8
"""New events that a kept session is continued with; with more it is encoded anew. On a processor they are appended one
by one, and a window takes as long as some ten."""
_OVERHEAD_BYTES = 1_000
"""Of the objects around the arrays."""


class Histories(Protocol):
    """What sessions need of the event store."""

    def glance(self, user_id: str) -> Glance:
        """Whether anything has changed."""
        ...

    def events_after(self, user_id: str, seq: int = 0, *, event_types: tuple[str, ...] = ()) -> StoredHistory:
        """Events with higher numbers; items of these types only, or of all types."""
        ...


@dataclass(frozen=True, slots=True)
class UserState:
    """What an answer reads of a user under one release."""

    glance: Glance
    last_ms: int
    """Moment of the last event, kept or not."""
    tokens_L: Tokens
    """The kept history."""
    seen: Tokens
    """All items of the history that may be recommended, each once and in ascending order: new ones too, of which no
    history is made."""
    k: int = 0
    digest: str = ""
    """Of all events that the session was made of."""
    num_read: int = 0
    """How many those are: more than the session's where it has read summaries."""
    session: Session | None = None
    """None while no item of the history is in the vocabulary."""
    ranking: Ranking | None = None
    """None where the session is."""

    @property
    def is_partial(self) -> bool:
        """Whether the session was opened without the summaries of closed windows."""
        return self.ranking is not None and self.ranking.is_partial

    @property
    def size_bytes(self) -> int:
        """What keeping it costs."""
        encoded = self.session.size_bytes if self.session else 0
        return encoded + self.tokens_L.nbytes + self.seen.nbytes + Ranking.SIZE_BYTES + _OVERHEAD_BYTES


class SessionCache:
    """States of users by (release, user), bounded by bytes; the least recently used leave first. Thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._states: OrderedDict[tuple[str, str], UserState] = OrderedDict()
        self._lock = threading.Lock()
        self.users = UsersAtWork()
        self.size_bytes = 0
        self._bytes_of: Counter[str] = Counter()
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._states)

    def get(self, release: str, user_id: str) -> UserState | None:
        """The state, which now was used last."""
        with self._lock:
            state = self._states.get((release, user_id))
            if state is not None:
                self._states.move_to_end((release, user_id))
            return state

    def put(self, release: str, user_id: str, state: UserState) -> None:
        """Keep a state instead of an older one; one that is larger than the whole cache is not kept."""
        with self._lock:
            self._remove((release, user_id))
            if state.size_bytes > self.limit_bytes:
                return
            self._states[release, user_id] = state
            self.size_bytes += state.size_bytes
            self._bytes_of[release] += state.size_bytes
            while self.size_bytes > self.limit_bytes:
                self._remove(next(iter(self._states)))
                self.evictions += 1

    def drop(self, release: str) -> None:
        """Drop every state of a release."""
        with self._lock:
            for key in [key for key in self._states if key[0] == release]:
                self._remove(key)

    def forget(self, user_ids: Collection[str]) -> None:
        """Drop every state of these users, and what is being made of them now."""
        self.users.forget(user_ids)
        with self._lock:
            for key in [key for key in self._states if key[1] in user_ids]:
                self._remove(key)

    def holds(self, release: str, user_id: str) -> bool:
        """Whether there is a state, which is not used by this look."""
        return (release, user_id) in self._states

    def bytes_of(self, release: str) -> int:
        """What the states of a release take."""
        return self._bytes_of[release]

    def latest_users(self, releases: Collection[str]) -> list[str]:
        """Users of some releases, each once, the last used first."""
        with self._lock:
            return list(dict.fromkeys(user for name, user in reversed(self._states) if name in releases))

    def _remove(self, key: tuple[str, str]) -> None:
        state = self._states.pop(key, None)
        if state is not None:
            self.size_bytes -= state.size_bytes
            self._bytes_of[key[0]] -= state.size_bytes


class Sessions:
    """States of users under one release, brought up to date as they are asked for. Thread-safe."""

    def __init__(self, release: Release, histories: Histories, cache: SessionCache) -> None:
        self._release = release
        self._histories = histories
        self._cache = cache
        self._engine = release.engine
        self._summaries = release.engine if isinstance(release.engine, SummaryEngine) else None
        self._batcher = AppendBatcher(release.engine)
        self._locks: dict[str, tuple[threading.Lock, int]] = {}
        self._locks_lock = threading.Lock()

    def warm_up(self) -> None:
        """Measure what batches of appends cost here."""
        self._batcher.measure()

    @property
    def most_together(self) -> int:
        """Appends that the engine was measured to do for less each when they come together; 1 before `warm_up`."""
        return self._batcher.most

    def state(
        self,
        user_id: str,
        glance: Glance,
        note: Callable[[UserState], object] = lambda _: None,
        until: float = math.inf,
    ) -> tuple[UserState, Outcome]:
        """The state after all events that `glance` saw, or later ones; one thread works on a user at a time.

        `note` is told the history once it is known, before it is encoded. `until` is the moment (of the
        monotonic clock) at which nobody wants the state any more: what is done together is chosen by it.

        Raises:
            StoreError: the store cannot be read.
        """
        with self._alone(user_id), self.at_work(user_id) as watch:
            kept = self._cache.get(self._release.name, user_id)
            if kept is not None and _same_events(kept.glance, glance):
                note(kept)
                return kept, "unchanged"
            fresh = self._read(user_id, kept, glance)
            note(fresh)
            state, outcome = self._encoded(fresh, kept, until)
            self._cache.put(self._release.name, user_id, state)
            if watch.is_forgotten:
                self._cache.forget({user_id})
            return state, outcome

    def at_work(self, user_id: str) -> AbstractContextManager[Watch]:
        """Told when the user is forgotten meanwhile."""
        return self._cache.users.at_work(user_id)

    def peek(self, user_id: str) -> UserState | None:
        """What is kept, without a look at the store: for answers that cannot wait."""
        return self._cache.get(self._release.name, user_id)

    def _events_after(self, user_id: str, seq: int = 0) -> StoredHistory:
        return self._histories.events_after(user_id, seq, event_types=self._release.history_types)

    def known(self, item_ids: Sequence[str | None]) -> tuple[Tokens, Tokens]:
        """Tokens of the kept items, in order; and of all that may be recommended, each once and in ascending order."""
        tokens = self._release.vocabulary.tokens(item_ids)
        kept: Tokens = tokens[(tokens != PAD) & (tokens <= self._release.vocabulary.num_kept)]
        return kept, np.unique(tokens[tokens != PAD])

    def ranking(self, tokens_L: Tokens) -> Ranking:
        """What a history that belongs to nobody, not empty, leads to; nothing is kept of it but summaries."""
        context = answer_context(tokens_L, self._release.window)
        if self._summaries is None:
            return Ranking(self._release, self._engine.encode([context])[0], tokens_L)
        session, is_partial = self._summaries.open_at_once(context)
        return Ranking(self._release, session.vector_D, tokens_L, is_partial=is_partial)

    def complete(self, ranking: Ranking, user_id: str | None = None) -> None:
        """Encode what a partial ranking lacks, and the user's session with it; called off the requests' path.

        Requests of the user wait for the session as for any other that is opened, not for summaries. Nothing is done
        for who was forgotten, whose session left, or who has more events than are read: with each event the first of
        those leaves, and all windows are others.
        """
        if self._summaries is None or not ranking.is_partial:
            return
        context = answer_context(ranking.tokens_L, self._release.window)
        if user_id is None:
            self._summaries.prepare([context])
            return
        with self.at_work(user_id) as watch:
            kept = self.peek(user_id)
            if kept is None or not kept.is_partial or kept.glance.num_events >= HISTORY_CAP:
                return
            self._summaries.prepare([context])
            with self._alone(user_id):
                kept = self.peek(user_id)
                if kept is not None and kept.is_partial:
                    self._cache.put(self._release.name, user_id, self._opened(kept))
            if watch.is_forgotten:
                self._summaries.forget(ranking.tokens_L)
                self._cache.forget({user_id})

    def forget(self, user_ids: Collection[str]) -> None:
        """Drop the summaries of these users' windows, as far as their histories are kept."""
        if self._summaries is not None:
            for kept in filter(None, map(self.peek, user_ids)):
                self._summaries.forget(kept.tokens_L)

    def _read(self, user_id: str, kept: UserState | None, glance: Glance) -> UserState:
        """The history from what is kept and newer events, or all of it where they do not simply follow."""
        if kept is not None and kept.glance.num_events < glance.num_events <= HISTORY_CAP:
            news = self._events_after(user_id, kept.glance.last_seq)
            follows = news.first_ms >= kept.last_ms or not kept.glance.num_events
            # Fewer than counted: something was committed under a lower number.
            if follows and kept.glance.num_events + len(news.item_ids) >= glance.num_events:
                seen = Glance(kept.glance.num_events + len(news.item_ids), news.last_seq, glance.revision)
                tokens, items = self.known(news.item_ids)
                tokens = np.concatenate([kept.tokens_L, tokens])
                return UserState(seen, news.last_ms, tokens, np.union1d(kept.seen, items))
        whole = self._events_after(user_id)
        num_events = max(len(whole.item_ids), glance.num_events if len(whole.item_ids) == HISTORY_CAP else 0)
        seen = Glance(num_events, whole.last_seq, glance.revision)
        return UserState(seen, whole.last_ms, *self.known(whole.item_ids))

    def _encoded(self, fresh: UserState, kept: UserState | None, until: float) -> tuple[UserState, Outcome]:
        if not len(fresh.tokens_L):
            return fresh, "opened"
        context = answer_context(fresh.tokens_L, self._release.window)
        session = kept.session if kept else None
        if not (kept and session and self._goes_on(kept, fresh, context)):
            return self._opened(fresh), "opened"
        more = context[kept.num_read :]
        if len(more) > _MOST_APPENDED:
            return self._opened(fresh), "opened"
        if len(more):
            session = self._batcher.append(session, more, until)
        return self._with(fresh, session, context, is_partial=kept.is_partial), "appended" if len(more) else "unchanged"

    def _goes_on(self, kept: UserState, fresh: UserState, context: Tokens) -> bool:
        """Whether the kept session was made of the first events of what now leads to an answer."""
        return kept.k == self._last_window(fresh) and digest(context[: kept.num_read]) == kept.digest

    def _opened(self, fresh: UserState) -> UserState:
        """The state with its last window encoded: with the summaries before it if they are at hand, else alone."""
        context = answer_context(fresh.tokens_L, self._release.window)
        if self._summaries is None:
            return self._with(fresh, self._engine.open([context])[0], context, is_partial=False)
        session, is_partial = self._summaries.open_at_once(context)
        return self._with(fresh, session, context, is_partial=is_partial)

    def _with(self, fresh: UserState, session: Session, context: Tokens, *, is_partial: bool) -> UserState:
        ranking = Ranking(self._release, session.vector_D, fresh.tokens_L, is_partial=is_partial)
        return replace(
            fresh,
            k=self._last_window(fresh),
            digest=digest(context),
            num_read=len(context),
            session=session,
            ranking=ranking,
        )

    def _last_window(self, state: UserState) -> int:
        return num_windows(len(state.tokens_L), self._release.window) - 1

    @contextmanager
    def _alone(self, user_id: str) -> Iterator[None]:
        """Hold this user's lock, which exists only while somebody wants it."""
        with self._locks_lock:
            lock, waiting = self._locks.get(user_id, (threading.Lock(), 0))
            self._locks[user_id] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._locks_lock:
                waiting = self._locks[user_id][1] - 1
                if waiting:
                    self._locks[user_id] = lock, waiting
                else:
                    del self._locks[user_id]


def _same_events(one: Glance, other: Glance) -> bool:
    return (one.num_events, one.last_seq) == (other.num_events, other.last_seq)
