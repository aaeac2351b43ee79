"""Numbers of strings: the same whether few or many are known."""

import numpy as np
import polars as pl
import pytest

from features.digest import string_hashes
from features.numbering import CONTENT_HASH, USERS_SCHEMA, Numbering, Users, hashed
from features.tombstones import Tombstones
from recsys.histories import SCHEMA, in_order


def test_strings_keep_their_numbers_while_new_ones_come() -> None:
    numbering = Numbering(pl.Series(["view", "cart"]))
    for strings, numbers in (
        (["cart", "view", "cart"], [1, 0, 1]),  # few, all known
        (["buy", "view"], [2, 0]),  # one is new
        ([], []),
        (["buy"], [2]),
        ([f"t{n}" for n in range(9)], [*range(3, 12)]),  # many
        (["t8", "view", "buy", "cart"], [11, 0, 2, 1]),
    ):
        codes = numbering.codes(pl.Series(strings, dtype=pl.String))
        assert (codes.to_list(), codes.dtype) == (numbers, pl.UInt32)
    assert numbering.names().to_list() == ["view", "cart", "buy", *(f"t{n}" for n in range(9))]


def test_users_of_an_artifact_of_before_get_their_hashes() -> None:
    stored = pl.DataFrame({"user_index": [1], "user_id": ["é"], "bucket": [7], "num_events": [3]})
    users = hashed(stored.cast({name: kind for name, kind in USERS_SCHEMA.items() if name != CONTENT_HASH}))
    assert users.schema == USERS_SCHEMA
    assert users[CONTENT_HASH].to_numpy() == string_hashes(["é"], "user")
    assert hashed(users) is users


def test_users_keep_their_numbers_and_forgotten_ones_get_none(tmp_path) -> None:
    first = Users(pl.DataFrame(schema=USERS_SCHEMA), Tombstones.load(tmp_path))
    events, _, _ = first.number(pl.DataFrame({"user_id": ["b", "a", "b"], "row": [0, 1, 2]}))
    assert events.rows() == [(0, 1), (1, 2), (2, 1)]
    forgetful = Users(first.table(), Tombstones.load(tmp_path).with_users(["c"]))
    events, present, num_forgotten = forgetful.number(pl.DataFrame({"user_id": ["c", "a", "d"], "row": [0, 1, 2]}))
    assert (events.rows(), num_forgotten) == ([(1, 2), (2, 3)], 1)
    np.testing.assert_array_equal(present[CONTENT_HASH], string_hashes(present["user_id"], "user"))
    assert forgetful.table()["user_id"].to_list() == ["b", "a", "d"]


def test_users_of_a_partition_are_found_among_those_of_its_buckets(tmp_path) -> None:
    ids = [f"u{n}" for n in range(300)]
    users = Users(pl.DataFrame(schema=USERS_SCHEMA), Tombstones.load(tmp_path))
    users.number(pl.DataFrame({"user_id": ids}))
    known = users.table()
    again = Users(known, Tombstones.load(tmp_path))
    for partition in range(4):
        mine = known.filter(pl.col("bucket") % 4 == partition)
        events, present, _ = again.number(mine.select("user_id"), partition, 4)
        assert events["user_index"].to_list() == mine["user_index"].to_list()
        assert present.equals(mine)
    assert len(again.table()) == 300


@pytest.mark.parametrize("highest", [9, 70_000, 2**32 - 1])
def test_histories_are_in_order_however_far_apart_users_numbers_are(highest: int) -> None:
    generator = np.random.default_rng(0)
    user = generator.choice(np.unique(generator.integers(1, highest, 50, dtype=np.int64)), 5_000)
    rows = np.arange(5_000)
    columns = {"user_index": user, "timestamp_ms": rows, "source": 0 * rows, "row": rows, "item_index": rows}
    frame = pl.DataFrame({**columns, "event_type": 0 * rows}).cast(SCHEMA)
    assert in_order(frame, np.array([0])).equals(frame.sort("user_index", maintain_order=True))
