"""A real server process under an open-loop load of simulated users with long histories."""

import http.client
import itertools
import json
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from recsys.contracts import artifact
from recsys.contracts.errors import StoreError
from recsys.contracts.events import Event
from recsys.contracts.ids import Vocabulary
from recsys.peak_memory import peak_bytes
from recsys.pipeline import load, server_process
from recsys.pipeline.load import Call
from recsys.pipeline.progress import bar
from recsys.store import EventStore
from recsys.store.rows import copy_histories

NUM_WARM = 200
_FEW = 20
"""Users whose answers are what the server's memory is first asked after."""
RATE_PER_S = 50.0
_STEP_S = 4.0
"""How long each rate is held when capacity is searched, at most as long as the mixed load lasts."""
_MAX_DEGRADED = 0.01
_OVERLOAD = 5
_CONFIDENCE = 0.5
"""Lists end at items less than half as likely as the first, where that is measured."""
_MOSTLY = 0.9
"""Share of answers, one at a time, that have to be the model's."""
_COLD_FOR_CAPACITY = 1_400
_LEAST_REQUESTS = 100
"""Of a step of that search, so that one degraded answer is not too many."""
_SWITCH_S = 40.0
"""How long the load lasts while releases are switched, at most."""
_TWINS = ("first", "second")
"""Names of the release and its copy."""
_NUM_DRAWN = 50
"""Histories that are drawn; more are copies."""


def run(releases: Path, num_requests: int, num_events: int) -> dict[str, Any]:
    """Measure the release with its endpoint's defaults, on loopback, this load generator included.

    Nine in ten requests are of users whose session is kept, one in ten of a user never asked for before;
    as many events come beside them. Before, the release is exchanged for a copy of it and back, under
    the load of warm users alone. Capacity is the highest rate at which at most 1 % is degraded and
    nothing is late. Late: over 100 ms from the appointed moment, unless an idle process was paused meanwhile.

    Raises:
        StoreError: the server did not start.
    """
    release = artifact.resolve_release(releases)
    vocabulary = Vocabulary.load(release)
    num_cold = num_requests // 10 + min(_COLD_FOR_CAPACITY, 10 * num_requests)
    with tempfile.TemporaryDirectory(prefix="recsys-") as folder:
        url = f"sqlite:///{folder}/store.db"
        _simulate(url, vocabulary, NUM_WARM + num_cold, num_events)
        twins = _twins(release, Path(folder) / "releases")
        with server_process.started(twins, url) as server, bar("serve") as advance:
            ready_mb = peak_bytes(server.process.pid) / 1e6
            cold_users = [f"cold-{n}" for n in range(num_cold)]
            run = _Run(server.port, server.process.pid, vocabulary, cold_users, num_requests, twins)
            phases = run.phases()
            for step, (name, phase) in enumerate(phases):
                advance(name, step, len(phases))
                phase()
            advance("done", len(phases), len(phases))
            memory = peak_bytes(server.process.pid) / 1e6
    size = sum(entry.size_bytes for entry in artifact.read_manifest(release).files.values())
    return {
        **run.figures,
        "ready_s": round(server.ready_s, 2),
        "ready_mb": round(ready_mb, 1),
        "peak_mb": round(memory, 1),
        "model": {"items": len(vocabulary), "release_mb": round(size / 1e6, 2)},
        "history_events": num_events,
        "cores": psutil.cpu_count(),
    }


class _Run:
    """The phases of one benchmark, and the figures they leave."""

    def __init__(
        self,
        port: int,
        pid: int,
        vocabulary: Vocabulary,
        cold_users: list[str],
        num_requests: int,
        releases: Path,
    ) -> None:
        self._port = port
        self._releases = releases
        self._pid = pid
        self._items = [item.item_id for item in vocabulary.items]
        self._cold = iter(cold_users)
        self._num_requests = num_requests
        self._step_s = min(_STEP_S, num_requests / RATE_PER_S)
        self._random = np.random.default_rng(1)
        self.figures: dict[str, Any] = {}

    def phases(self) -> list[tuple[str, Any]]:
        """In their order."""
        return [
            ("one at a time", self._one_at_a_time),
            ("switch", self._switch),
            ("mixed load", self._mixed),
            ("capacity, warm", self._warm_capacity),
            ("capacity, cold", self._cold_capacity),
            ("overload", self._overload),
        ]

    def _one_at_a_time(self) -> None:
        """Each warm user's first request, then a few hundred more: service times without queueing."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        patient = [{"user_id": f"warm-{n}", "k": 10, "deadline_ms": 10_000} for n in range(NUM_WARM)]
        asked = [_ask(connection, body) for body in patient[:_FEW]]
        answering_mb = round(peak_bytes(self._pid) / 1e6, 1)
        first = _of_model(asked + [_ask(connection, body) for body in patient[_FEW:]])
        again = _of_model([_ask(connection, body) for body in patient])
        told = []
        for body in patient:
            self._tell(connection, str(body["user_id"]))
            told.append(_ask(connection, body))
        after_event = _of_model(told)
        long = _of_model([_ask(connection, body | {"k": 100}) for body in patient])
        sure = _of_model([_ask(connection, body | {"k": 100, "min_confidence": _CONFIDENCE}) for body in patient])
        held = _metric(connection, "recsys_session_cache_bytes") / max(
            1, _metric(connection, "recsys_session_cache_users")
        )
        connection.close()
        self.figures |= {
            "answering_mb": answering_mb,
            "cold_p50_ms": _percentile(first, 50),
            "warm_p50_ms": _percentile(again, 50),
            "warm_after_event_p50_ms": _percentile(after_event, 50),
            "k100_p50_ms": _percentile(long, 50),
            "k100_confident_p50_ms": _percentile(sure, 50),
            "gib_per_10000_sessions": round(held * 10_000 / 2**30, 3),
        }

    def _mixed(self) -> None:
        users = [next(self._cold) if i % 10 == 9 else self._warm_user() for i in range(self._num_requests)]
        beside = [self._event(self._warm_user()) for _ in users]
        done = load.run(self._port, [_call(user) for user in users], RATE_PER_S, beside, self._pid)
        self.figures |= {
            "requests": len(users),
            "rate_per_s": RATE_PER_S,
            "late": done.late,
            "late_in_pause": done.late_in_pause,
            "errors": done.errors,
            "degraded_share": round(done.degraded_share, 5),
            "degraded": done.degraded,
            **{f"p{q}_ms": _percentile(done.latencies_ms, q) for q in (50, 90, 99)},
            "max_ms": round(max(done.latencies_ms, default=0.0), 2),
        }

    def _warm_capacity(self) -> None:
        self.figures["capacity_warm_per_s"] = self._capacity(lambda: self._warm_user(), 100.0)

    def _cold_capacity(self) -> None:
        self.figures["capacity_cold_per_s"] = self._capacity(lambda: next(self._cold), 8.0)

    def _overload(self) -> None:
        rate = _OVERLOAD * max(1.0, self.figures["capacity_warm_per_s"])
        # Plain requests, and as many that hide what was seen, or some items: those take longer to shed.
        wishes: list[dict[str, Any]] = [{}, {"exclude_seen": True}, {"exclude": self._items[:5]}]
        calls = [_call(self._warm_user(), **wishes[n % len(wishes)]) for n in range(int(rate * self._step_s))]
        done = load.run(self._port, calls, rate, server_pid=self._pid)
        self.figures |= {
            "overload_rate_per_s": rate,
            "overload_requests": len(calls),
            "overload_late": done.late,
            "overload_late_in_pause": done.late_in_pause,
            "overload_generator_cores": round(done.generator_share, 2),
            "overload_errors": done.errors,
            "overload_degraded_share": round(done.degraded_share, 4),
            "overload_p99_ms": _percentile(done.latencies_ms, 99),
        }

    def _switch(self) -> None:
        """The mixed load's rate of warm users while `current` is moved to another release, and back."""
        num = min(self._num_requests, int(_SWITCH_S * RATE_PER_S))
        calls = [_call(self._warm_user()) for _ in range(num)]
        beside = [self._event(self._warm_user()) for _ in range(num)]
        took_s: list[float | None] = []
        mover = threading.Thread(target=self._move, args=(took_s, num / RATE_PER_S / 2))
        mover.start()
        done = load.run(self._port, calls, RATE_PER_S, beside, self._pid)
        mover.join()
        self.figures |= {
            "switch_requests": num,
            "switch_s": took_s,
            "switch_late": done.late,
            "switch_late_in_pause": done.late_in_pause,
            "switch_errors": done.errors,
            "switch_degraded_share": round(done.degraded_share, 5),
            "switch_p99_ms": _percentile(done.latencies_ms, 99),
        }

    def _move(self, took_s: list[float | None], most_s: float) -> None:
        """Note how long each switch takes; None, if longer than `most_s`."""
        for name in reversed(_TWINS):
            artifact.set_current(self._releases, name)
            began = time.monotonic()
            while (elapsed := time.monotonic() - began) < most_s and server_process.answering(self._port) != name:
                time.sleep(0.05)
            took_s.append(round(elapsed, 2) if elapsed < most_s else None)

    def _capacity(self, user: Any, rate: float) -> float:
        """The highest rate that held, by steps of a quarter; 0 if not even the first did.

        Each has two tries: a pause of 40 ms, the machine's own or ours, is 1 % of a step.
        """
        held = 0.0
        while self._has_held(user, rate) or self._has_held(user, rate):
            held, rate = rate, round(rate * 1.25, 1)
        return held

    def _has_held(self, user: Any, rate: float) -> bool:
        try:
            least = min(_LEAST_REQUESTS, self._num_requests)
            calls = [_call(user()) for _ in range(max(least, int(rate * self._step_s)))]
        except StopIteration:  # no user is left that was never asked for
            return False
        done = load.run(self._port, calls, rate, server_pid=self._pid)
        return not done.late and not done.errors and done.degraded_share <= _MAX_DEGRADED

    def _warm_user(self) -> str:
        return f"warm-{self._random.integers(NUM_WARM)}"

    def _event(self, user: str) -> Call:
        item = self._items[self._random.integers(len(self._items))]
        return Call("/v1/events", {"events": [{"user_id": user, "item_id": item}]})

    def _tell(self, connection: http.client.HTTPConnection, user: str) -> None:
        call = self._event(user)
        connection.request("POST", call.path, json.dumps(call.body), {"Content-Type": "application/json"})
        connection.getresponse().read()


def _twins(release: Path, folder: Path) -> Path:
    """A folder of releases with the same one twice, the first of them current."""
    for name in _TWINS:
        shutil.copytree(release, folder / name)
    artifact.set_current(folder, _TWINS[0])
    return folder


def _call(user: str, **wishes: Any) -> Call:
    return Call("/v1/recommendations", {"user_id": user, "k": 10, **wishes})


def _simulate(url: str, vocabulary: Vocabulary, num_users: int, num_events: int) -> None:
    """Users who draw items by popularity: what is measured depends on lengths and sizes, not on taste.

    Some histories are drawn, the others are copies of them: the server cannot tell.
    """
    generator = np.random.default_rng(0)
    share = vocabulary.num_events[1:] + 1.0
    share /= share.sum()
    store = EventStore.open(url)
    users = [f"warm-{n}" if n < NUM_WARM else f"cold-{n - NUM_WARM}" for n in range(num_users)]
    with bar("simulate") as advance:
        for n, user in enumerate(users[:_NUM_DRAWN]):
            drawn = generator.choice(len(vocabulary), size=num_events, p=share)
            store.append(
                [
                    Event(user_id=user, item_id=vocabulary.items[item].item_id, timestamp_ms=moment)
                    for moment, item in enumerate(drawn.tolist())
                ]
            )
            advance("users", n + 1, num_users)
    copies = zip(users[_NUM_DRAWN:], itertools.cycle(users[:_NUM_DRAWN]))
    copy_histories(store, dict(copies))
    store.close()


def _ask(connection: http.client.HTTPConnection, body: dict[str, Any]) -> float | None:
    """Milliseconds from sending a request to the last byte of a model's answer; None if it is another's."""
    content = json.dumps(body)
    started = time.perf_counter()
    connection.request("POST", "/v1/recommendations", content, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    elapsed = (time.perf_counter() - started) * 1000
    return None if answer.get("degraded") else elapsed


def _of_model(asked: list[float | None]) -> list[float]:
    """Without the answers of others, which a pause of the machine leads to."""
    found = [elapsed for elapsed in asked if elapsed is not None]
    if len(found) < _MOSTLY * len(asked):
        raise StoreError(
            f"{len(asked) - len(found)} of {len(asked)} answers to one request at a time were degraded; "
            "figures would not be the model's: run it again while nothing else runs"
        )
    return found


def _metric(connection: http.client.HTTPConnection, name: str) -> float:
    connection.request("GET", "/metrics")
    found = re.search(rf"^{name} (\S+)$", connection.getresponse().read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def _percentile(milliseconds: list[float], q: float) -> float:
    return round(float(np.percentile(milliseconds, q)), 2) if milliseconds else 0.0
