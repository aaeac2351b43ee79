"""A forgotten user is in nobody's memory: not of this worker, not of others, not by an answer under way."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.endpoint import Endpoint
from tests.serving.test_shedding import in_one_piece, message


def kept_of_ann(shop) -> list[object]:
    """What a worker could show of her without a look at the store."""
    live = shop.endpoint.releases.current
    return [live.sessions.peek("ann"), shop.endpoint.service.last_answers.get(live.name, "ann")]


def shed_source(shop, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where her answer comes from while the loop is behind."""
    with monkeypatch.context() as behind:
        behind.setattr(Endpoint, "is_behind", lambda *_: True)
        return in_one_piece(shop, message('{"user_id": "ann", "k": 2}'))[0]["source"]


def wait_until_gone(shop) -> None:
    until = time.monotonic() + 30
    while kept_of_ann(shop) != [None, None]:
        assert time.monotonic() < until


@pytest.mark.parametrize("how", ["forgotten", "signed in as somebody else"])
def test_other_workers_keep_nothing_of_a_user_who_is_gone(open_shop, monkeypatch, how: str) -> None:
    asked, other = open_shop(deadline_ms=10_000, poll_s=0.01), open_shop(deadline_ms=10_000, poll_s=0.01)
    asked.tell("sku-3", "sku-5")
    for shop in (asked, other):
        shop.ask(user_id="ann", k=2)
        assert shed_source(shop, monkeypatch) == "last_answer"
    if how == "forgotten":
        assert asked.client.delete("/v1/users/ann").json() == {"events": 2}
    else:
        assert asked.client.post("/v1/users/bob/join", json={"session_id": "ann"}).json() == {"events": 2}
    assert kept_of_ann(asked) == [None, None]
    wait_until_gone(other)
    assert shed_source(other, monkeypatch) == "popular"


@pytest.mark.parametrize("stage", ["open", "append", "rank"])
def test_an_answer_under_way_keeps_nothing_of_a_user_who_is_forgotten_meanwhile(shop, monkeypatch, stage: str) -> None:
    shop.tell("sku-3")
    if stage != "open":
        shop.ask(user_id="ann", k=2)
        shop.tell("sku-5")
    engine, index = shop.engine, shop.endpoint.releases.current.recommender.release.index
    target, name = (index, "all_scores") if stage == "rank" else (engine, stage)
    true = getattr(target, name)

    def forgetting(*arguments):
        assert shop.client.delete("/v1/users/ann").status_code == 200
        return true(*arguments)

    monkeypatch.setattr(target, name, forgetting)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(shop.ask, user_id="ann", k=2).result()["source"] == "model"
    assert kept_of_ann(shop) == [None, None]
    assert shop.endpoint.cache.users._watches == {}
    assert shed_source(shop, monkeypatch) == "popular"


def test_a_worker_that_sees_a_user_without_events_keeps_no_answer(shop, monkeypatch) -> None:
    shop.tell("sku-3")
    shop.ask(user_id="ann", k=2)
    shop.store.forget("ann")  # as another worker does, a moment before the next look at what it did
    assert shop.ask(user_id="ann", k=2)["reason"] == "unknown_user"
    assert shed_source(shop, monkeypatch) == "popular"
