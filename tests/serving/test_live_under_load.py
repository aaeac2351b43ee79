"""Releases switched by everybody under load, with engines that do nothing: who is late waited for a switch."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, takewhile
from pathlib import Path
from typing import Final

import httpx
import pytest

from recsys.contracts import artifact
from recsys.contracts.events import Event
from recsys.pipeline.pauses import Pauses
from recsys.runtime.recommender import Recommender
from serving.app import create_app
from serving.config import ServeConfig
from tests.serving.conftest import running
from tests.serving.test_live import ADMIN, SECRET, Site, site  # noqa: F401  # a fixture

NUM_CLIENTS: Final = 4
USERS: Final = [f"u{n}" for n in range(12)]
HEADERS: Final = {"Authorization": f"Bearer {SECRET}"}
PACE_S: Final = 0.005
DEADLINE_MS: Final = 500
LOAD_S: Final = 1.0
"""What a release takes to be loaded, and a user to be encoded before a switch: who waits for it is late."""
MOST_DEGRADED: Final = 0.01


def ask(client: httpx.Client, n: int) -> tuple[float, dict]:
    """The moment of an answer, and the answer: users of the store and requests of nobody's by turns."""
    body = {"user_id": USERS[n]} if n % 3 else {"events": [{"item_id": "sku-1"}]}
    response = client.post("/v1/recommendations", json={**body, "k": 3})
    assert response.status_code == 200, response.text
    return time.monotonic(), response.json()


@contextmanager
def load(address: str) -> Iterator[list[tuple[float, dict]]]:
    """Clients that ask one thing after another; afterwards the list holds their answers."""
    stop, answers = threading.Event(), []

    def work() -> list[tuple[float, dict]]:
        with httpx.Client(base_url=address, headers=HEADERS, timeout=30) as client:
            return [ask(client, n) for n in takewhile(lambda _: not stop.wait(PACE_S), cycle(range(len(USERS))))]

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients = [pool.submit(work) for _ in range(NUM_CLIENTS)]
        try:
            yield answers
        finally:
            stop.set()
        answers += [answer for client in clients for answer in client.result()]


def slow(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Loading takes longer than a deadline."""
    true = site.load

    def loading(path: Path) -> Recommender:
        threading.Event().wait(LOAD_S)
        return true(path)

    monkeypatch.setattr(site, "load", loading)


def test_switches_roll_backs_and_polls_under_load_make_nobody_late_and_mix_no_labels(
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow(site, monkeypatch)
    config = ServeConfig(tokens=(ADMIN,), deadline_ms=DEADLINE_MS, poll_s=0.005, recall_s=3_600)
    releases = site.releases()
    rested: list[float] = []

    def rest(_: float) -> None:
        rested.append(LOAD_S)
        threading.Event().wait(LOAD_S if len(rested) == 1 else 0)

    releases.preparer._rest = rest
    app = create_app(config, releases, site.store, releases._cache)
    site.store.append([Event(user_id=user, item_id=f"sku-{n}", timestamp_ms=n) for user in USERS for n in range(5)])

    with running(app) as address, httpx.Client(base_url=address, headers=HEADERS, timeout=30) as admin:

        def deal(weight: float) -> None:
            arms = [{"name": "old"}, {"name": "new", "release": "c", "weight": weight}]
            assert admin.put("/v1/admin/arms", json={"arms": arms}).status_code == 200

        def current_answers() -> set[str]:
            answers = [ask(admin, n)[1] for n in range(len(USERS))]
            return {answer["release"] for answer in answers if answer["arm"] == "old"}

        with Pauses([os.getpid()]) as pauses, load(address) as answers:
            deal(weight=1)
            for weight in (1, 2):
                assert admin.post("/v1/admin/releases/b/activate").json()["current"] == "b"
                assert current_answers() == {"b"}
                deal(weight)
                assert admin.post("/v1/admin/rollback").json()["current"] == "a"
                assert current_answers() == {"a"}
                artifact.set_current(site.folder, "b")  # as `recsys nightly --activate` does
                assert any(admin.get("/v1/admin/releases").json()["current"] == "b" for _ in range(10_000))
                assert current_answers() == {"b"}
                assert admin.post("/v1/admin/rollback").json()["current"] == "a"
                assert current_answers() == {"a"}
        assert releases.loaded == ["a", "b", "c"]
    assert rested  # sessions were prepared
    labels = {(answer["arm"], answer["release"]) for _, answer in answers}
    assert labels == {("all", "a"), ("old", "a"), ("old", "b"), ("new", "c")}
    assert {len(answer["items"]) for _, answer in answers} == {3}
    taken = [(moment, answer["timings_ms"]["total"], answer["degraded"]) for moment, answer in answers]
    paused_ms = [pauses.overlap_ms(moment - total / 1000, moment) for moment, total, _ in taken]
    late = [total for (_, total, _), paused in zip(taken, paused_ms, strict=True) if total > DEADLINE_MS + paused]
    degraded = [label for (_, _, label), paused in zip(taken, paused_ms, strict=True) if label and not paused]
    assert late == []
    assert len(degraded) <= MOST_DEGRADED * len(answers), degraded
