from collections.abc import Sequence

import numpy as np
import pytest

from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import Item, Tokens, Vocabulary
from recsys.evaluation.translation import Translated
from tests.evaluation.test_baselines import row


def vocabulary(*items: tuple[str, int]) -> Vocabulary:
    return Vocabulary([Item(item_id=name, item_index=i, num_events=n) for i, (name, n) in enumerate(items, 1)])


THEIRS = vocabulary(("c", 1), ("gone", 9), ("a", 5), ("b", 2))  # tokens c 1, gone 2, a 3, b 4
OURS = vocabulary(("a", 0), ("b", 0), ("c", 0), ("new", 0))  # tokens a 1, b 2, c 3, new 4


class Spy:
    """Ranks the whole catalogue by token, for an empty history by popularity; remembers what it was asked."""

    name = "spy"

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        self.asked.append(([h.tolist() for h in histories], k, [e.tolist() for e in exclude or []]))
        rows = []
        for history, without in zip(histories, exclude or [[]] * len(histories), strict=True):
            order = (1, 2, 3, 4) if len(history) else THEIRS.popular().tolist()
            rows.append(([token for token in order if token not in without] + [0] * k)[:k])
        return np.array(rows, dtype=np.int32)


def test_histories_exclusions_and_lists_are_translated_by_item_id() -> None:
    spy = Spy()
    ranked = Translated(spy, THEIRS, OURS).rank([row(1, 4, 3)], 2, [row(4, 3)])
    # a, new, c is shown as a, c; c is hidden; one more is asked for, since "gone" may take a place
    assert spy.asked == [([[3, 1]], 3, [[1]])]
    assert ranked.tolist() == [[1, 2]]  # gone, a, b without "gone"


def test_a_user_of_new_items_only_gets_their_popular_items() -> None:
    spy = Spy()
    ranked = Translated(spy, THEIRS, OURS).rank([row(4), row(2)], 4)
    assert ranked.tolist() == [[1, 2, 3, 0], [3, 1, 2, 0]]  # by events a 5, b 2, c 1; by the spy c, a, b
    assert [question[0] for question in spy.asked] == [[[], [4]]]
    assert Translated(spy, THEIRS, OURS).rank([row(4)], 2, [row(1)]).tolist() == [[2, 3]]


def test_the_same_vocabulary_changes_nothing() -> None:
    spy = Spy()
    assert Translated(spy, THEIRS, THEIRS).rank([row(3)], 4).tolist() == [[1, 2, 3, 4]]


def test_vocabularies_without_a_common_item_are_refused() -> None:
    with pytest.raises(ArtifactError, match="none of its 1 items is in these features"):
        Translated(Spy(), vocabulary(("x", 1)), OURS)
