import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.errors import ConfigError, DataError, UnknownUserError
from recsys.contracts.ids import Item, Vocabulary
from recsys.pipeline import recommend, recommend_all
from recsys.pipeline.tables import batch_summary, items_table
from recsys.runtime import recommender as recommender_module
from recsys.runtime.filters import ItemFilters
from recsys.runtime.recommender import Recommender, Users
from recsys.whole_histories import WholeHistories
from tests.conftest import NUM_ITEMS, write_features

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture(scope="module")
def recommender(ring_releases: Path) -> Recommender:
    return Recommender.load(ring_releases, num_threads=1)


def run(release: Path, features: Path, out: Path, users: Path | None = None, **options: object) -> dict[str, object]:
    settings = {"k": 3, "exclude_seen": False} | options
    return recommend_all.run(release, features, out, users=users, **settings)  # type: ignore[arg-type]


def test_the_rows_of_a_user_are_the_one_off_answer(
    ring_releases: Path, ring_features: Path, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommender_module, "ENCODE_BATCH", 7)  # many batches, the last one not full
    counts = run(ring_releases, ring_features, tmp_path / "all.parquet", exclude_seen=True)
    rows = pl.read_parquet(tmp_path / "all.parquet")
    assert rows.columns == ["user_id", "item_id", "score", "rank"]
    assert (counts["num_users"], counts["num_rows"]) == (120, 360)
    stored = WholeHistories(ring_features)
    for user_id in rows["user_id"].unique().sort()[::10]:
        alone = recommender.recommend(stored.of(user_id) or [], k=3, exclude_seen=True)
        mine = rows.filter(pl.col("user_id") == user_id)
        assert mine["rank"].to_list() == [1, 2, 3]
        assert mine["item_id"].to_list() == [item.item_id for item in alone]
        np.testing.assert_allclose(mine["score"], [item.score for item in alone], rtol=1e-5)


def test_the_same_input_gives_the_same_bytes_and_nothing_is_left_beside(
    ring_releases: Path, ring_features: Path, tmp_path: Path
) -> None:
    for name in "ab":
        run(ring_releases, ring_features, tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_users_of_a_file_are_answered_once_and_unknown_ones_refused(
    ring_releases: Path, ring_features: Path, tmp_path: Path
) -> None:
    (tmp_path / "users.txt").write_text("u007\nu003\nu007\n\n")
    run(ring_releases, ring_features, tmp_path / "some.parquet", tmp_path / "users.txt")
    assert sorted(pl.read_parquet(tmp_path / "some.parquet")["user_id"]) == ["u003"] * 3 + ["u007"] * 3
    (tmp_path / "users.txt").write_text("u007\nnobody\n")
    with pytest.raises(UnknownUserError, match=r"1 of 2 users are not in .*, the first is 'nobody'"):
        run(ring_releases, ring_features, tmp_path / "none.parquet", tmp_path / "users.txt")
    (tmp_path / "users.txt").write_text("\n")
    with pytest.raises(DataError, match="no user in it"):
        run(ring_releases, ring_features, tmp_path / "none.parquet", tmp_path / "users.txt")
    with pytest.raises(ConfigError, match="expected a file that ends in"):
        run(ring_releases, ring_features, tmp_path / "none.csv")
    assert not (tmp_path / "none.parquet").exists()


@pytest.fixture
def with_unknown(tmp_path: Path) -> Path:
    """A user who had the items 4, 5, 6, and one who only had an item that the release does not know."""
    write_features(tmp_path / "f", {"known": [4, 5, 6], "new": [NUM_ITEMS + 1, NUM_ITEMS + 1]}, NUM_ITEMS + 1, 10)
    return tmp_path / "f"


def test_users_without_a_known_item_get_popular_items_and_are_counted(
    ring_releases: Path, with_unknown: Path, recommender: Recommender, tmp_path: Path
) -> None:
    counts = run(ring_releases, with_unknown, tmp_path / "all.parquet", with_source=True)
    assert (counts["num_users"], counts["num_users_without_known_items"], counts["num_rows"]) == (2, 1, 6)
    rows = pl.read_parquet(tmp_path / "all.parquet")
    assert rows.columns == ["user_id", "item_id", "score", "rank", "source"]
    assert rows["user_id"].to_list() == ["known"] * 3 + ["new"] * 3
    assert rows["source"].to_list() == ["model"] * 3 + ["popular"] * 3
    assert rows["rank"].to_list() == [1, 2, 3] * 2
    assert rows["item_id"].to_list()[0] == "sku-7"
    popular = recommender.popular(3)
    assert rows["item_id"].to_list()[3:] == [item.item_id for item in popular]
    assert rows["score"].to_list()[3:] == [item.score for item in popular]
    assert "2 users; 1 users without an item that the release knows have the popular items" in batch_summary(counts)


def test_users_asked_for_in_place_of_a_history_have_the_same_lists_and_popular_ones_say_so(
    with_unknown: Path, recommender: Recommender
) -> None:
    answers = recommender.recommend(Users(with_unknown, ["new", "known"]), k=3)
    assert answers == {"known": recommender.recommend(["sku-4", "sku-5", "sku-6"], k=3), "new": recommender.popular(3)}
    assert {user_id: {item.is_popular for item in items} for user_id, items in answers.items()} == {
        "known": {False},
        "new": {True},
    }
    with pytest.raises(UnknownUserError, match=r"1 of 2 users are not in it, the first is 'nobody'"):
        recommender.recommend(Users(with_unknown, ["known", "nobody"]))


def test_the_one_off_answer_for_a_user_without_a_known_item_says_that_it_is_popular(
    ring_releases: Path, with_unknown: Path, recommender: Recommender
) -> None:
    asked = {"features": with_unknown, "history": None, "k": 3, "exclude_seen": False}
    new, known = (recommend.run(ring_releases, user_id=user_id, **asked) for user_id in ("new", "known"))
    assert new == recommender.popular(3)
    assert items_table(new).endswith("popular items, for nothing is known of the user; scores are events of late")
    assert "popular" not in items_table(known)


def test_users_without_a_known_item_have_no_rows_if_so_asked(
    ring_releases: Path, with_unknown: Path, tmp_path: Path
) -> None:
    counts = run(ring_releases, with_unknown, tmp_path / "all.parquet", popular_for_unknown=False)
    assert (counts["num_users"], counts["num_users_without_known_items"]) == (1, 1)
    assert set(pl.read_parquet(tmp_path / "all.parquet")["user_id"]) == {"known"}
    assert batch_summary(counts).endswith("1 users without an item that the release knows have none")


def test_popular_items_leave_out_what_a_user_has_seen(with_unknown: Path, recommender: Recommender) -> None:
    """An item too new for histories, yet the most popular one: who had it alone is unknown, but has seen it."""
    new = Item(
        item_id=f"sku-{NUM_ITEMS + 1}", item_index=NUM_ITEMS + 1, num_events=10**6, num_recent=10**6, is_new=True
    )
    vocabulary = Vocabulary([*recommender.release.vocabulary.items, new])
    other = Recommender(replace(recommender.release, vocabulary=vocabulary))
    stored, found = WholeHistories(with_unknown), {}
    for exclude_seen in (False, True):
        (batch,) = other.batches(stored, 2, ["new"], exclude_seen=exclude_seen, popular_for_unknown=True)
        assert batch.is_popular_B.tolist() == [True]
        found[exclude_seen] = batch.tokens_BK[0].tolist()
    first, second = recommender.release.vocabulary.popular()[:2].tolist()
    assert found == {False: [NUM_ITEMS + 1, first], True: [first, second]}


def test_filters_hold_for_all_users_and_for_popular_items(
    ring_releases: Path, with_unknown: Path, recommender: Recommender, tmp_path: Path
) -> None:
    wanted = {"exclude": ["sku-7", "sku-9"], "keep": lambda item: item.item_index % 2 == 1}
    run(ring_releases, with_unknown, tmp_path / "all.parquet", **wanted)
    rows = pl.read_parquet(tmp_path / "all.parquet")
    alone = recommender.recommend(["sku-4", "sku-5", "sku-6"], k=3, **wanted)
    popular = recommender.popular(3, **wanted)
    assert rows["item_id"].to_list() == [item.item_id for item in [*alone, *popular]]
    assert all(int(item_id[4:]) % 2 for item_id in rows["item_id"])


def test_filters_that_leave_nothing_are_refused(ring_releases: Path, with_unknown: Path, tmp_path: Path) -> None:
    keep = ItemFilters(category=["lamps"]).keep  # no item of the ring has a category
    with pytest.raises(ConfigError, match=rf"none of the {NUM_ITEMS} items of release .* passes the filters"):
        run(ring_releases, with_unknown, tmp_path / "all.parquet", keep=keep)
    assert [place.name for place in tmp_path.iterdir()] == ["f"]


def test_filters_of_one_and_of_many_users_agree(ring_features: Path, recommender: Recommender) -> None:
    stored = WholeHistories(ring_features)
    together = recommender.recommend(
        Users(ring_features, ["u001", "u002"]), k=40, exclude=["sku-1"], keep=lambda item: item.item_index % 2 == 1
    )
    for user_id, items in together.items():
        alone = recommender.recommend(
            stored.of(user_id) or [], k=40, exclude=["sku-1"], keep=lambda item: item.item_index % 2 == 1
        )
        assert [item.item_id for item in items] == [item.item_id for item in alone]
        assert {item.item_id for item in items} == {f"sku-{i}" for i in range(3, NUM_ITEMS + 1, 2)}


def test_the_page_on_python_runs(
    ring_releases: Path, ring_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = tmp_path / "runs" / "demo"
    demo.mkdir(parents=True)
    (demo / "releases").symlink_to(ring_releases)
    (demo / "features").symlink_to(ring_features)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    exec("\n".join(blocks), {})
    assert pl.read_parquet(demo / "all.parquet").height == 1200
