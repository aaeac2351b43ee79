"""Sessions under a release whose windows leave summaries: no answer waits for one, and the next answer has it."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.contracts.events import Event
from recsys.contracts.precision import CacheFormat, ItemFormat
from recsys.model.config import ModelConfig
from recsys.model.reference import encode
from recsys.model.summaries import SummaryModel
from recsys.runtime.cuda import CudaEngine
from recsys.runtime.items import ItemTable
from recsys.runtime.recommender import Recommender
from recsys.runtime.summaries import Summaries, SummaryEngine, SummaryWeights
from recsys.store import EventStore
from recsys.windows import WindowConfig, answer_context, digest, open_window
from serving import sessions as sessions_module
from serving.config import ServeConfig
from serving.fallback import LastAnswers
from serving.impressions import ImpressionWriter
from serving.live import LiveRelease, Releases
from serving.metrics import Metrics
from serving.preparing import Preparer
from serving.schemas import RecommendationRequest
from serving.sessions import SessionCache, Sessions, UserState
from serving.unseen import Unseen
from serving.work import Finder, Work
from tests.serving.conftest import KNOWN, fake_app, fake_release, running

WINDOW = WindowConfig(size=8, overlap_share=0.25, num_summaries=2, summary_tokens=2)  # stride 6
CONFIG = ModelConfig(width=20, num_layers=1, num_heads=2, head_dim=8, feedforward_width=24, init_std=0.3)


@pytest.fixture(scope="module")
def model() -> SummaryModel:
    torch.manual_seed(0)
    return SummaryModel(CONFIG, len(KNOWN), WINDOW).eval()


def engine_of(model: SummaryModel, at_hand: Summaries | None = None) -> SummaryEngine:
    items = ItemTable.of(model.embedding.weight.detach().numpy(), ItemFormat.FLOAT32)
    below = CudaEngine(
        model, items, window_size=WINDOW.most_rows, cache=CacheFormat.FLOAT32, precision="float32", device="cpu"
    )
    return SummaryEngine(below, items, SummaryWeights(*model.weights()), WINDOW, at_hand or Summaries())


class Worker:
    """One process's sessions over a shared store."""

    def __init__(self, store: EventStore, model: SummaryModel, at_hand: Summaries | None = None) -> None:
        self.store, self.model = store, model
        self.engine = engine_of(model, at_hand)
        self.cache = SessionCache(10**7)
        self.sessions = Sessions(fake_release(self.engine, "r1", WINDOW), store, self.cache)
        self.name = "r1"

    def state(self) -> UserState:
        return self.sessions.state("ann", self.store.glance("ann"))[0]

    def outcome(self) -> str:
        return self.sessions.state("ann", self.store.glance("ann"))[1]

    def complete(self) -> None:
        self.sessions.complete(self.state().ranking, "ann")


@pytest.fixture
def store(tmp_path: Path):
    opened = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()


@pytest.fixture
def worker(store: EventStore, model: SummaryModel) -> Worker:
    return Worker(store, model)


def tell(store: EventStore, num: int, at: int | None = None) -> None:
    for _ in range(num):
        n = store.num_events()
        store.append([Event(user_id="ann", item_id=KNOWN[7 * n % 20], timestamp_ms=n + 1_000 if at is None else at)])


def is_at_hand(engine: SummaryEngine, context: np.ndarray) -> bool:
    return not engine.open_at_once(context)[1]


def assert_whole(worker: Worker) -> None:
    state = worker.state()
    assert not state.is_partial
    expected = encode(worker.model, [answer_context(state.tokens_L, WINDOW)])[0]
    np.testing.assert_allclose(state.ranking.vector_D, expected, atol=2e-5)


def assert_partial(worker: Worker) -> None:
    state = worker.state()
    assert state.is_partial
    expected = encode(worker.model, [open_window(state.tokens_L, WINDOW)])[0]
    np.testing.assert_allclose(state.ranking.vector_D, expected, atol=2e-5)


def test_the_first_answer_waits_for_no_summary_and_the_next_one_has_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(worker.store, 21)
    with monkeypatch.context() as patched:
        patched.setattr(worker.engine, "summaries", lambda closed: pytest.fail("a request encodes a summary"))
        assert_partial(worker)
    worker.complete()
    assert worker.outcome() == "unchanged"
    assert_whole(worker)
    tell(worker.store, 1)
    assert worker.outcome() == "appended"
    assert_whole(worker)


def test_a_short_history_is_never_partial(worker: Worker) -> None:
    tell(worker.store, 8)
    assert_whole(worker)


def test_a_window_that_closes_makes_one_partial_answer(worker: Worker) -> None:
    tell(worker.store, 14)
    worker.state()
    worker.complete()
    assert_whole(worker)
    tell(worker.store, 1)  # window 2 opens, and reads what window 1 leaves
    assert worker.outcome() == "opened"
    assert_partial(worker)
    worker.complete()
    assert_whole(worker)


def test_a_partial_session_goes_on_until_it_is_whole(worker: Worker) -> None:
    tell(worker.store, 16)
    partial = worker.state().ranking
    tell(worker.store, 2)
    assert worker.outcome() == "appended"
    assert_partial(worker)
    worker.sessions.complete(partial, "ann")  # what was asked for before those events
    assert_whole(worker)


def test_what_is_made_for_a_window_that_has_closed_meanwhile_does_no_harm(worker: Worker) -> None:
    tell(worker.store, 14)
    partial = worker.state().ranking
    tell(worker.store, 1)
    worker.state()
    worker.sessions.complete(partial, "ann")
    assert_partial(worker)
    worker.complete()
    assert_whole(worker)


def test_a_late_event_in_a_closed_window_encodes_again(worker: Worker) -> None:
    tell(worker.store, 21)
    worker.state()
    worker.complete()
    before = worker.state()
    tell(worker.store, 1, at=1_012)
    assert worker.outcome() == "opened"
    assert worker.state().digest != before.digest
    worker.complete()
    assert_whole(worker)


def test_what_the_release_brings_along_makes_whole_answers_at_once(store: EventStore, model: SummaryModel) -> None:
    tell(store, 21)
    first = Worker(store, model)
    context = answer_context(first.state().tokens_L, WINDOW)
    closed = [context[:8], context[6:14]]
    stored = dict(zip(map(digest, closed), first.engine.summaries(closed), strict=True))
    assert_whole(Worker(store, model, Summaries(stored)))


def test_who_is_forgotten_while_summaries_are_made_is_not_kept(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(worker.store, 21)
    partial = worker.state().ranking
    prepare = worker.engine.prepare

    def forgotten_meanwhile(contexts: list[np.ndarray]) -> int:
        num = prepare(contexts)
        worker.store.forget("ann")
        worker.cache.forget({"ann"})
        return num

    monkeypatch.setattr(worker.engine, "prepare", forgotten_meanwhile)
    worker.sessions.complete(partial, "ann")
    assert worker.sessions.peek("ann") is None
    assert not is_at_hand(worker.engine, answer_context(partial.tokens_L, WINDOW))


def test_nothing_is_made_of_who_was_forgotten_before_it_began(worker: Worker) -> None:
    tell(worker.store, 21)
    partial = worker.state().ranking
    worker.store.forget("ann")
    worker.cache.forget({"ann"})
    worker.sessions.complete(partial, "ann")
    assert not is_at_hand(worker.engine, answer_context(partial.tokens_L, WINDOW))


def test_who_has_more_events_than_are_read_is_answered_by_the_last_window(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "HISTORY_CAP", 21)
    monkeypatch.setattr(worker.engine, "summaries", lambda closed: pytest.fail("encoded again with every event"))
    tell(worker.store, 21)
    worker.state()
    worker.complete()
    assert_partial(worker)


def test_the_summaries_of_who_is_forgotten_leave_too(worker: Worker) -> None:
    tell(worker.store, 21)
    worker.state()
    worker.complete()
    context = answer_context(worker.state().tokens_L, WINDOW)
    other = np.arange(1, 21, dtype=np.int32)
    worker.engine.prepare([other])
    worker.sessions.forget({"ann", "somebody who was never here"})
    assert not is_at_hand(worker.engine, context)
    assert is_at_hand(worker.engine, other)


def test_requests_do_not_wait_while_summaries_are_made(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(worker.store, 21)
    partial = worker.state().ranking
    begun, go_on = threading.Event(), threading.Event()
    summaries = worker.engine.summaries

    def stalled(closed: list[np.ndarray]) -> np.ndarray:
        if len(closed):
            begun.set()
            assert go_on.wait(30)
        return summaries(closed)

    monkeypatch.setattr(worker.engine, "summaries", stalled)
    thread = threading.Thread(target=worker.sessions.complete, args=(partial, "ann"))
    thread.start()
    try:
        assert begun.wait(30)
        tell(worker.store, 1)
        assert_partial(worker)
    finally:
        go_on.set()
        thread.join(30)
    assert_whole(worker)


def test_concurrent_requests_events_and_summaries_of_one_user_end_as_if_cold(worker: Worker) -> None:
    tell(worker.store, 12)
    start = threading.Barrier(6)

    def work(n: int) -> list[int]:
        start.wait(30)
        lengths = []
        for step in range(6):
            if n % 3 == 1:
                tell(worker.store, 1, at=5_000 + step)
            elif n % 3 == 2:
                worker.complete()
            lengths.append(len(worker.state().tokens_L))
        return lengths

    with ThreadPoolExecutor(6) as pool:
        for lengths in pool.map(work, range(6)):
            assert lengths == sorted(lengths)
    assert len(worker.state().tokens_L) == 12 + 2 * 6
    worker.complete()
    assert_whole(worker)


def test_a_history_that_belongs_to_nobody_is_whole_the_second_time(worker: Worker) -> None:
    tokens = np.arange(30, dtype=np.int32) % 20 + 1
    partial = worker.sessions.ranking(tokens)
    assert partial.is_partial
    worker.sessions.complete(partial)
    whole = worker.sessions.ranking(tokens)
    assert not whole.is_partial
    np.testing.assert_allclose(whole.vector_D, encode(worker.model, [answer_context(tokens, WINDOW)])[0], atol=2e-5)


def test_before_a_switch_sessions_are_encoded_with_their_summaries(store: EventStore, model: SummaryModel) -> None:
    tell(store, 21)
    now, then = Worker(store, model), Worker(store, model)
    then.cache = now.cache
    then.name = "r2"
    then.sessions = Sessions(fake_release(then.engine, "r2", WINDOW), store, now.cache)
    now.state()
    Preparer(store, now.cache).prepare({"r1"}, lambda _: then, longest_s=60)
    assert_whole(then)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["ask", "complete", "late"])), max_size=12))
def test_whatever_comes_in_whatever_order_ends_as_if_cold(
    tmp_path_factory: pytest.TempPathFactory, model: SummaryModel, steps: list[tuple[int, str]]
) -> None:
    store = EventStore.open(f"sqlite:///{tmp_path_factory.mktemp('s') / 'store.db'}")
    worker = Worker(store, model)
    tell(store, 1)
    for num, then in steps:
        tell(store, num, at=500 if then == "late" else None)
        worker.state()
        if then == "complete":
            worker.complete()
            assert_whole(worker)
    worker.complete()
    assert_whole(worker)
    store.close()


def test_answers_say_that_they_are_partial(store: EventStore, model: SummaryModel) -> None:
    engine = engine_of(model)
    app = fake_app(ServeConfig(deadline_ms=10_000), engine, store, WINDOW)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=stack.enter_context(running(app)), timeout=30))
        tell(store, 21)

        def ask() -> dict:
            return client.post("/v1/recommendations", json={"user_id": "ann", "k": 3}).json()

        first = ask()
        assert (first["source"], first["partial"]) == ("model", True)
        until = time.monotonic() + 30
        while (answer := ask())["partial"] and time.monotonic() < until:
            time.sleep(0.01)
        assert (answer["source"], answer["partial"]) == ("model", False)
        assert answer["items"] != first["items"]
        assert ask()["partial"] is False
        assert 'recsys_partial_answers_total{release="r1"}' in client.get("/metrics").text
        assert not is_at_hand(engine, np.arange(1, 21, dtype=np.int32))
        history = app.state.endpoint.releases.current.sessions.peek("ann").tokens_L
        assert is_at_hand(engine, answer_context(history, WINDOW))
        assert client.delete("/v1/users/ann").status_code == 200
        assert not is_at_hand(engine, answer_context(history, WINDOW))
        told = [{"item_id": KNOWN[n % 20]} for n in range(30)]
        body = {"events": told, "k": 3}
        assert client.post("/v1/recommendations", json=body).json()["partial"] is True


def test_summaries_that_cannot_be_encoded_are_in_the_log_and_tried_again(
    store: EventStore, model: SummaryModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(model)
    tried = threading.Semaphore(0)

    def broken(contexts: list[np.ndarray]) -> int:
        tried.release()
        raise RuntimeError("the engine is on fire")

    monkeypatch.setattr(engine, "prepare", broken)
    app = fake_app(ServeConfig(deadline_ms=10_000), engine, store, WINDOW)
    tell(store, 21)
    with running(app) as address, httpx.Client(base_url=address, timeout=30) as client:
        for _ in range(2):
            assert client.post("/v1/recommendations", json={"user_id": "ann"}).json()["partial"] is True
            assert tried.acquire(timeout=30)
    assert caplog.text.count("summaries not encoded under r1") == 2
    assert "the engine is on fire" in caplog.text


def test_a_shadow_has_summaries_for_its_next_answer_too(store: EventStore, model: SummaryModel) -> None:
    cache = SessionCache(10**7)
    releases = Releases(Recommender(fake_release(engine_of(model), "r1", WINDOW)), store, cache)
    shadow = LiveRelease(Recommender(fake_release(engine_of(model), "r2", WINDOW)), store, cache)
    metrics = Metrics()
    finder = Finder(releases, store, metrics, LastAnswers())
    impressions = ImpressionWriter(store, metrics.lost_impressions.inc)
    unseen = Unseen(releases, finder, impressions, metrics, 0.0, lambda: False, time.monotonic)
    tell(store, 21)
    work = Work(RecommendationRequest(user_id="ann", k=3), releases.current, "all", time.monotonic)
    try:
        finder.find(work)
        unseen._answer(shadow, work, "0" * 32, 0)
    finally:
        unseen.pool.close()
        impressions.close(wait_s=30)
    for live, is_partial in ((releases.current, True), (shadow, False)):
        kept = live.sessions.peek("ann")
        assert kept is not None
        assert kept.is_partial is is_partial
