"""Users who are forgotten while somebody is at work on them: what that work finds must not be kept."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Watch:
    """What one piece of work looks at after it has kept something of its user."""

    __slots__ = ("is_forgotten",)

    def __init__(self) -> None:
        self.is_forgotten = False
        """What was kept has to go again."""


class UsersAtWork:
    """Who is being worked on. Thread-safe, with no lock around what is kept.

    Whoever keeps something of a user does so first and then looks at the watch; whoever forgets a user tells the
    watches first and then deletes. So one of the two always sees the other.
    """

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def at_work(self, user_id: str) -> Iterator[Watch]:
        """A watch, from before the first look at the user's events until the last thing is kept."""
        mine = Watch()
        with self._lock:
            self._watches.setdefault(user_id, set()).add(mine)
        try:
            yield mine
        finally:
            with self._lock:
                watches = self._watches[user_id]
                watches.discard(mine)
                if not watches:
                    del self._watches[user_id]

    def forget(self, user_ids: Collection[str]) -> None:
        """Tell everybody who is at work on one of these users."""
        with self._lock:
            for user_id in user_ids:
                for watch in self._watches.get(user_id, ()):
                    watch.is_forgotten = True
