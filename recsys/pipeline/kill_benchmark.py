"""Kill −9 under load, again and again: which events that the server had acknowledged are gone afterwards?"""

import http.client
import json
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.contracts import artifact
from recsys.contracts.ids import Vocabulary
from recsys.pipeline import server_process
from recsys.pipeline.progress import bar
from recsys.store import EventStore

_NUM_CLIENTS: Final = 4
_LONGEST_LIFE_S: Final = 1.0


def run(releases: Path, num_kills: int) -> dict[str, Any]:
    """Clients send events and ask for recommendations without a pause; the server is killed at a random moment.

    Every start but the first recovers the store that the kill before it left. Lost: acknowledged, but not in the
    store at the end. More may be there than was acknowledged: the answer, not the event, was cut off.

    Raises:
        StoreError: the server did not start, or did not start again.
    """
    vocabulary = Vocabulary.load(artifact.resolve_release(releases))
    known = [item.item_id for item in vocabulary.items[:1_000]]
    generator = np.random.default_rng(3)
    acknowledged: set[str] = set()
    num_answers = 0
    with tempfile.TemporaryDirectory(prefix="recsys-") as folder, bar("kill") as advance:
        url = f"sqlite:///{folder}/store.db"
        for kill in range(num_kills):
            with server_process.started(releases, url) as server:
                clients = [Client(server.port, f"{kill}-{n}", known) for n in range(_NUM_CLIENTS)]
                killer = threading.Timer(generator.uniform(0.05, _LONGEST_LIFE_S), server.process.kill)
                killer.start()
                for client in clients:
                    client.start()
                for client in clients:
                    client.join()
            acknowledged.update(*(client.acknowledged for client in clients))
            num_answers += sum(client.num_answers for client in clients)
            advance("kills", kill + 1, num_kills)
        store = EventStore.open(url)
        kept = {event_id for user in range(_NUM_CLIENTS) for event_id in event_ids(store, user_of(user))}
        store.close()
    return {
        "kills": num_kills,
        "acknowledged_events": len(acknowledged),
        "acknowledged_events_lost": len(acknowledged - kept),
        "answers_meanwhile": num_answers,
    }


def user_of(client: int | str) -> str:
    """The user whose events a client sends."""
    return f"user-{client}"


def event_ids(store: EventStore, user: str) -> list[str]:
    """Of all events of a user, oldest first."""
    return [event.event_id for event in store.recent(user, limit=10**7) if event.event_id is not None]


class Client(threading.Thread):
    """One user's events, each followed by a request for recommendations, until the server is gone."""

    def __init__(self, port: int, name: str, known: list[str]) -> None:
        """`name` begins the ids of the events, and its part after the last `-` tells the user: see `user_of`."""
        super().__init__(daemon=True)
        self._port, self._prefix, self._known = port, name, known
        self._user = user_of(name.rpartition("-")[2])
        self.acknowledged: list[str] = []
        self.num_answers = 0

    def run(self) -> None:
        """Send and ask without a pause."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            while True:
                event_id = f"{self._prefix}-{len(self.acknowledged)}"
                item = self._known[len(self.acknowledged) % len(self._known)]
                event = {"user_id": self._user, "item_id": item, "event_id": event_id}
                if self._post(connection, "/v1/events", {"events": [event]}) == http.HTTPStatus.OK:
                    self.acknowledged.append(event_id)
                if self._post(connection, "/v1/recommendations", {"user_id": self._user}) == http.HTTPStatus.OK:
                    self.num_answers += 1
        except (OSError, http.client.HTTPException):  # killed
            connection.close()

    def _post(self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> int:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
