"""Filters, boosts, pins, diversity, truncation and reasons, against a brute-force ranking."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.contracts.ids import PAD, Item, Vocabulary
from recsys.runtime.fusion import Fusion
from recsys.runtime.index import ItemIndex
from serving import ranking
from serving.ranking import Ranking, Wish, rank
from serving.rules import Catalogue, Filters, Rules
from tests.serving.conftest import FakeEngine, fake_release

V = 400
ITEMS_VD = np.random.default_rng(0).normal(size=(V, 8)).astype(np.float32)
VOCABULARY = Vocabulary(
    [
        Item(
            item_id=f"i{n}",
            item_index=n + 1,
            num_events=1,
            category=f"c{n % 7}",
            price=float(n % 50) if n % 3 else None,
        )
        for n in range(V)
    ]
)
CATALOGUE = Catalogue(VOCABULARY)
HISTORY = np.array([5, 9, 9, 30], dtype=np.int32)


def query(temperature: float = 1.0, **fusion: float):
    from dataclasses import replace

    from recsys.transitions import TransitionTable

    nothing = np.zeros(V + 2, dtype=np.int64)
    release = replace(
        fake_release(FakeEngine()),
        vocabulary=VOCABULARY,
        index=ItemIndex.build(ITEMS_VD),
        fusion=Fusion(**fusion),
        temperature=temperature,
        transitions=TransitionTable(nothing, np.empty(0, np.int32), np.empty(0, np.float16)),
    )
    return Ranking(release, np.random.default_rng(1).normal(size=8).astype(np.float32), HISTORY)


def wish(k: int = 10, filters: Filters | None = None, rules: Rules | None = None, **more: float) -> Wish:
    compiled = CATALOGUE.compile(rules or Rules())
    return Wish(k=k, allowed=CATALOGUE.matching(filters or Filters(), compiled), rules=compiled, **more)


def by_hand(asked, wanted: Wish) -> list[int]:
    tokens = np.arange(1, V + 1, dtype=np.int32)
    scores = asked.scores(tokens)
    scores[wanted.rules.boosted - 1] += asked.release.temperature * wanted.rules.weights
    order = [int(t) for t in tokens[np.argsort(-scores, kind="stable")] if wanted.allowed[t]]
    return order[: wanted.k]


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 100),
    category=st.none() | st.lists(st.sampled_from(["c1", "c2", "c5", "none such"]), min_size=1),
    min_price=st.none() | st.floats(0, 60),
    weight=st.floats(-5, 5),
    denied=st.lists(st.integers(0, V - 1), max_size=30),
    base=st.sampled_from([0.0, 2.0]),
)
def test_filters_and_boosts_are_exact(k, category, min_price, weight, denied, base) -> None:
    asked = query(temperature=3.0, base=base)
    rules = Rules(denied=[f"i{n}" for n in denied], boosts=[{"category": "c5", "weight": weight}])
    wanted = wish(k, Filters(category=category, min_price=min_price), rules)
    assert rank(asked, wanted).tokens_K.tolist() == by_hand(asked, wanted)


@pytest.mark.parametrize("few", [0, 10**6])
def test_looking_further_and_scoring_one_by_one_find_the_same(few: int, monkeypatch) -> None:
    monkeypatch.setattr(ranking, "FEW", few)
    asked, wanted = query(), wish(100, Filters(category=["c3"]))
    assert rank(asked, wanted).tokens_K.tolist() == by_hand(asked, wanted)
    assert len(rank(asked, wanted).tokens_K) == V // 7  # the catalogue ends before k


def test_a_filter_that_nobody_matches_gives_nothing() -> None:
    assert len(rank(query(), wish(filters=Filters(min_price=1e6))).tokens_K) == 0


def test_an_item_without_a_price_matches_no_price() -> None:
    found = rank(query(), wish(100, Filters(min_price=0))).tokens_K
    assert all(VOCABULARY.item(int(token)).price is not None for token in found)


def test_stock_and_the_deny_list_differ_in_who_may_lift_them() -> None:
    rules = Rules(unavailable=["i1"], denied=["i2"])
    for available, hidden in ((True, {2, 3}), (False, {3})):
        allowed = wish(filters=Filters(available=available), rules=rules).allowed
        assert set(np.flatnonzero(~allowed)) == {0, *hidden}


def test_pins_stand_at_their_place_unless_they_may_not_be_shown() -> None:
    rules = Rules(pins=[{"item_id": "i7", "position": 3}, {"item_id": "i8", "position": 1}], unavailable=["i8"])
    asked, plain = query(), wish(5)
    free = [t for t in by_hand(asked, plain) if t not in {8, 9}]
    assert rank(asked, wish(5, rules=rules)).tokens_K.tolist() == [*free[:2], 8, *free[2:4]]


def test_an_item_that_is_pinned_twice_is_shown_once() -> None:
    rules = Rules(pins=[{"item_id": "i7", "position": 4}, {"item_id": "i7", "position": 2}])
    found = rank(query(), wish(5, rules=rules)).tokens_K.tolist()
    assert (found[1], len(set(found))) == (8, 5)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_a_list_ends_where_items_are_too_unlikely(temperature: float) -> None:
    asked = query(temperature)
    whole, short = rank(asked, wish(50)), rank(asked, wish(50, min_confidence=0.5))
    odds = np.exp((whole.scores_K - whole.scores_K[0]) / temperature)
    assert short.tokens_K.tolist() == whole.tokens_K[odds >= 0.5].tolist()
    assert 0 < len(short.tokens_K) < 50


@settings(max_examples=40, deadline=None)
@given(
    first=st.sampled_from([0, 1, 10]),
    k=st.integers(1, 100),
    min_confidence=st.floats(1e-4, 1),
    category=st.none() | st.just(["c1"]),
    weight=st.floats(-3, 3),
    diversity=st.sampled_from([0.0, 0.4]),
)
def test_a_list_that_ends_early_is_the_whole_list_cut(first, k, min_confidence, category, weight, diversity) -> None:
    """Whatever is at hand already."""
    asked, rules = query(4.0), Rules(boosts=[{"category": "c5", "weight": weight}])
    if first:
        rank(asked, wish(first))
    wanted = {"filters": Filters(category=category), "rules": rules}
    whole = rank(asked, wish(V, **wanted))
    confident = whole.tokens_K[np.exp((whole.scores_K - whole.scores_K[0]) / 4) >= min_confidence]
    found = rank(asked, wish(k, min_confidence=min_confidence, diversity=diversity, **wanted)).tokens_K
    if diversity:
        assert set(found) <= set(confident[: 5 * k])
        assert len(found) == min(k, len(confident))
    else:
        assert found.tolist() == confident[:k].tolist()


def test_a_list_that_ends_within_the_places_at_hand_is_not_searched_for(monkeypatch) -> None:
    asked, looks = query(), []
    true = ranking.Query.best
    monkeypatch.setattr(ranking.Query, "best", lambda self, look: (looks.append(look), true(self, look))[1])
    rank(asked, wish(10))
    assert looks == [40]
    assert 0 < len(rank(asked, wish(100, min_confidence=0.5)).tokens_K) < 40
    assert looks == [40]
    rank(asked, wish(60, min_confidence=1e-9))  # further down than that: searched, once and no further than is kept
    assert looks == [40, 256]
    fresh = query()
    rank(fresh, wish(100, min_confidence=0.5))
    assert looks == [40, 256, 256]


@pytest.mark.parametrize("temperature", [0.5, 5.0])
def test_a_boost_of_log_2_doubles_the_odds(temperature: float) -> None:
    def odds(asked: Ranking, rules: Rules) -> float:
        ranked = rank(asked, wish(V, rules=rules))
        likely = np.exp(ranked.scores_K.astype(np.float64) / temperature)
        here = likely[ranked.tokens_K == 8].sum()
        return float(here / (likely.sum() - here))

    asked = query(temperature)
    boosted = Rules(boosts=[{"item_id": "i7", "weight": np.log(2)}])
    assert odds(asked, boosted) == pytest.approx(2 * odds(asked, Rules()), rel=1e-4)


def test_diversity_keeps_the_best_item_and_lowers_likeness() -> None:
    def likeness(tokens) -> float:
        unit = ITEMS_VD[tokens - 1] / np.linalg.norm(ITEMS_VD[tokens - 1], axis=1, keepdims=True)
        return float((unit @ unit.T).mean())

    asked = query()
    plain, diverse = rank(asked, wish(10)), rank(asked, wish(10, diversity=0.6))
    assert diverse.tokens_K[0] == plain.tokens_K[0]
    assert likeness(diverse.tokens_K) < likeness(plain.tokens_K)
    assert len(set(diverse.tokens_K.tolist())) == 10


def test_the_reason_is_the_other_item_of_the_history_that_is_most_alike_and_a_repeat_says_so() -> None:
    unit = ITEMS_VD / np.linalg.norm(ITEMS_VD, axis=1, keepdims=True)
    wanted = np.array([1, 2, 30], dtype=np.int32)
    expected = [max({5, 9, 30} - {t}, key=lambda s, t=t: unit[t - 1] @ unit[s - 1]) for t in wanted.tolist()]
    found = query().reasons(wanted)
    assert [reason.token for reason in found] == expected
    assert [reason.is_again for reason in found] == [False, False, True]


def test_the_reason_is_among_the_last_fifty_distinct_items() -> None:
    """Item 200 was seen once, then items 1 … 49 again and again: it is the fiftieth; item 201 the fifty-first."""
    history = np.concatenate([[201, 200], np.tile(np.arange(1, 50), 3)]).astype(np.int32)
    like_old = np.vstack([ITEMS_VD[:299], [ITEMS_VD[199], ITEMS_VD[200]], ITEMS_VD[301:]])  # tokens 300 and 301
    index = ItemIndex.build(like_old)
    first, second = ranking._reasons(index, np.array([300, 301], dtype=np.int32), history)
    assert first.token == 200
    assert second.token != 201


def test_an_item_that_is_the_whole_history_has_no_other_reason() -> None:
    (only,) = ranking._reasons(ItemIndex.build(ITEMS_VD), np.array([7], np.int32), np.array([7, 7], np.int32))
    assert (only.token, only.is_again) == (PAD, True)


def test_a_state_is_searched_once_however_often_it_is_asked_and_filtered(monkeypatch) -> None:
    asked, looks = query(), []
    true = ranking.Query.best
    monkeypatch.setattr(ranking.Query, "best", lambda self, look: (looks.append(look), true(self, look))[1])
    for filters in (Filters(), Filters(min_price=0), Filters()):
        wanted = wish(5, filters)
        assert rank(asked, wanted).tokens_K.tolist() == by_hand(query(), wanted)[:5]
    assert len(looks) < 3
    deep = wish(100)
    assert rank(asked, deep).tokens_K.tolist() == by_hand(query(), deep)[:100]
