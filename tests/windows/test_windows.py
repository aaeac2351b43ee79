from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys import windows
from recsys.windows import WindowConfig

SHOP = WindowConfig()
lengths = st.integers(min_value=0, max_value=12_000)


@st.composite
def configs(draw: st.DrawFn) -> WindowConfig:
    size = draw(st.integers(min_value=2, max_value=64))
    share = draw(st.floats(min_value=0.0, max_value=0.9))
    if size - round(size * share) < 1:
        share = 0.0
    return WindowConfig(size=size, overlap_share=share)


def test_the_shop_default_is_1024_with_307_shared() -> None:
    assert (SHOP.size, SHOP.overlap, SHOP.stride, SHOP.reach) == (1024, 307, 717, 2459)


def test_the_general_rule_is_80_percent_with_20_percent_shared() -> None:
    rule = WindowConfig.for_context(2048)
    assert (rule.size, rule.overlap, rule.stride) == (1638, 328, 1310)


# n, windows, open window [start, stop): by hand from start = 717 k
@pytest.mark.parametrize(
    ("num_events", "count", "start"),
    [
        (0, 1, 0),
        (1, 1, 0),
        (306, 1, 0),
        (307, 1, 0),
        (308, 1, 0),
        (309, 1, 0),
        (1023, 1, 0),
        (1024, 1, 0),
        (1025, 2, 717),
        (1026, 2, 717),
        (1741, 2, 717),
        (1742, 3, 1434),
        (2047, 3, 1434),
        (2048, 3, 1434),
        (2049, 3, 1434),
        (10_000, 14, 9321),
    ],
)
def test_windows_of_a_length(num_events: int, count: int, start: int) -> None:
    cut = windows.cut(num_events, SHOP)
    assert len(cut) == count
    assert (cut[-1].start, cut[-1].stop) == (start, num_events)


@given(lengths)
def test_the_last_2048_events_are_covered_by_the_open_window_and_three_before(num_events: int) -> None:
    read = windows.serving_windows(num_events, SHOP)
    assert len(read) <= 4
    assert read[0].start <= max(0, num_events - 2048)
    assert read[-1].stop == num_events
    assert all(a.stop >= b.start for a, b in pairwise(read))


@given(lengths, configs())
def test_consecutive_windows_share_exactly_the_overlap(num_events: int, config: WindowConfig) -> None:
    cut = windows.cut(num_events, config)
    assert all(a.stop - b.start == config.overlap for a, b in pairwise(cut))
    assert all(len(window) == config.size for window in cut[:-1])
    if len(cut) > 1:
        assert config.overlap + 1 <= len(cut[-1]) <= config.size


@given(lengths, st.integers(min_value=0, max_value=3000), configs())
def test_appending_never_changes_a_closed_window(num_events: int, more: int, config: WindowConfig) -> None:
    before = windows.cut(num_events, config)[:-1]
    assert windows.cut(num_events + more, config)[: len(before)] == before


@given(lengths, configs())
def test_every_event_but_the_first_is_predicted_exactly_once(num_events: int, config: WindowConfig) -> None:
    predicted = [e for w in windows.cut(num_events, config) for e in range(w.first_target, w.stop)]
    assert predicted == list(range(1, num_events))


@given(st.lists(st.integers(min_value=1, max_value=50), max_size=300), configs())
def test_batch_equals_online(events: list[int], config: WindowConfig) -> None:
    """Cut after every event as serving does, and once at the end as the batch job does."""
    tokens = np.array(events, dtype=np.int32)
    seen_closed: dict[int, str] = {}
    for n in range(len(tokens) + 1):
        closed = windows.cut(n, config)[:-1]
        for window in closed:
            digest = windows.digest(tokens[window.start : window.stop])
            assert seen_closed.setdefault(window.k, digest) == digest
    batch = {w.k: windows.digest(tokens[w.start : w.stop]) for w in windows.cut(len(tokens), config)[:-1]}
    assert seen_closed == batch
    last = windows.cut(len(tokens), config)[-1]
    np.testing.assert_array_equal(windows.open_window(tokens, config), tokens[last.start : last.stop])


def test_a_digest_depends_on_the_events_and_their_order_alone() -> None:
    one = np.array([1, 2, 3], dtype=np.int32)
    assert windows.digest(one) == windows.digest(np.array([9, 1, 2, 3], dtype=np.int64)[1:].astype(np.int32))
    assert windows.digest(one) != windows.digest(one[::-1])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_events = -1"):
        windows.num_windows(-1, SHOP)
    with pytest.raises(ValueError, match="window 1 of a history of 5 events"):
        windows.window_at(1, 5, SHOP)
