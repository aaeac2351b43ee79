import pytest

from recsys.assignment import assign

USERS = [f"user-{n}" for n in range(20_000)]


def test_shares_follow_the_weights() -> None:
    arms = [assign(user, "s", [("a", 3), ("b", 1)]) for user in USERS]
    assert 0.74 < arms.count("a") / len(arms) < 0.76  # 3.3 standard errors


def test_a_user_keeps_the_arm_and_only_the_share_that_moves_changes() -> None:
    before = [assign(user, "s", [("a", 50), ("b", 50)]) for user in USERS]
    after = [assign(user, "s", [("a", 60), ("b", 40)]) for user in USERS]
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {("b", "a")}
    assert 0.09 < len(moved) / len(USERS) < 0.11


def test_another_salt_deals_independently() -> None:
    even = [("a", 1), ("b", 1)]
    same = sum(assign(user, "s", even) == assign(user, "t", even) for user in USERS)
    assert 0.485 < same / len(USERS) < 0.515


def test_an_arm_without_weight_gets_nobody() -> None:
    assert {assign(user, "s", [("a", 0), ("b", 1)]) for user in USERS[:1000]} == {"b"}


@pytest.mark.parametrize("weights", [[], [("a", 0.0)], [("a", -1.0), ("b", 2.0)]])
def test_weights_that_deal_nothing_are_refused(weights) -> None:
    with pytest.raises(ValueError, match="expected none negative and one above 0"):
        assign("u", "s", weights)
