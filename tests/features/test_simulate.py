"""The simulated shop: deterministic, shaped like a shop, and with an order that a model can learn."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from typer.testing import CliRunner

from features import bulk
from features.simulate import BRANDS, SimulateConfig, run, simulate
from recsys.cli.data import features_app
from recsys.contracts.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "data" / "sample" / "events.csv.gz"
SMALL = {"num_users": 60, "num_items": 160, "num_events": 2_000}
COLUMNS = ["user_id", "item_id", "timestamp", "event_type", "title", "category", "price"]


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return simulate(SimulateConfig())


@pytest.fixture(scope="module")
def by_user(log: pl.DataFrame) -> pl.DataFrame:
    """Histories without immediate repeats: `after` is the next item, `late` those after the 0.9 quantile."""
    split = log["timestamp"].sort()[int(0.9 * len(log))]
    brand = pl.col("title").str.split(" ").list.first()
    return (
        log.with_columns(item=pl.col("item_id").rank("dense").cast(pl.Int64) - 1, late=pl.col("timestamp") >= split)
        .sort("user_id", maintain_order=True)
        .filter((pl.col("item") != pl.col("item").shift(1).over("user_id")).fill_null(True))
        .with_columns(
            after=pl.col("item").shift(-1).over("user_id"),
            late=pl.col("late").shift(-1).over("user_id"),
            brand=pl.when(brand.is_in(BRANDS)).then(brand).forward_fill().over("user_id").fill_null("none"),
        )
        .filter(pl.col("after").is_not_null())
    )


def hit_rate(by_user: pl.DataFrame, context: list[str], k: int, given: str = "item", target: str = "after") -> float:
    """Share of late events among the k most frequent ones after the same (given, context) before the split."""
    early, late = by_user.filter(~pl.col("late")), by_user.filter("late")
    keys = [given, *context] if given else context
    counts = early.group_by(*keys, target).len().sort("len", target, descending=[True, False])
    best = counts.group_by(*keys, maintain_order=True).head(k) if keys else counts.head(k)
    hits = late.join(best, on=[*keys, target], how="semi")
    return len(hits) / len(late)


def test_the_committed_sample_is_what_the_defaults_write(log: pl.DataFrame) -> None:
    assert pl.read_csv(SAMPLE).equals(log)
    assert SAMPLE.stat().st_size <= 1_200_000


def test_columns_ids_and_times_have_the_documented_form(log: pl.DataFrame) -> None:
    assert log.columns == COLUMNS
    assert log["user_id"].str.contains(r"^u\d{5}$").all()
    assert log["item_id"].str.contains(r"^sku-\d{5}$").all()
    assert log["timestamp"].str.contains(r"^2026-\d\d-\d\dT\d\d:\d\d:\d\dZ$").all()
    assert log["timestamp"].is_sorted()
    assert log["category"].str.contains(r"^[a-z]+/[a-z]+$").all()
    assert (log["price"] > 0).all()
    assert log.null_count().sum_horizontal().item() == 0


def test_an_item_has_one_title_category_and_price(log: pl.DataFrame) -> None:
    assert log.select("item_id", "title", "category", "price").n_unique() == log["item_id"].n_unique()


def test_activity_has_a_long_tail_with_four_heavy_users(log: pl.DataFrame) -> None:
    events = log["user_id"].value_counts()["count"]
    assert len(events) == 1_500
    assert (events > 2_048).sum() == 4
    assert events.median() < 0.6 * events.mean()


def test_rare_items_exist_and_some_are_launched_after_the_split(log: pl.DataFrame) -> None:
    events = log.group_by("item_id").agg(pl.len(), first=pl.col("timestamp").min())
    split = log["timestamp"][int(0.9 * len(log))]
    assert (events["len"] < 5).sum() > 80
    assert (events["len"] > 300).sum() > 10
    assert (events["first"] > split).sum() > 5


def test_a_purchase_follows_a_cart_and_a_cart_follows_a_view_of_the_same_item(log: pl.DataFrame) -> None:
    counts = dict(log["event_type"].value_counts().iter_rows())
    assert counts["view"] > 5 * counts["cart"] > 5 * counts["purchase"] > 0
    steps = log.sort("user_id", maintain_order=True).with_columns(
        before=pl.col("event_type").shift(1).over("user_id"), item_before=pl.col("item_id").shift(1).over("user_id")
    )
    later = steps.filter(pl.col("event_type") != "view")
    expected = pl.col("event_type").replace_strict({"cart": "view", "purchase": "cart"})
    assert later.select(((pl.col("before") == expected) & (pl.col("item_before") == pl.col("item_id"))).all()).item()


def test_sessions_stay_mostly_in_one_category(log: pl.DataFrame) -> None:
    moment = pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%SZ")
    steps = log.filter(event_type="view").sort("user_id", maintain_order=True)
    steps = steps.with_columns(
        gap=moment.diff().over("user_id"), same=pl.col("category").eq(pl.col("category").shift(1))
    )
    inside = steps.filter(pl.col("gap") < pl.duration(minutes=30))
    assert 0.7 < len(inside) / len(steps) < 0.9
    assert inside["same"].mean() > 0.85  # type: ignore[operator]
    assert steps.filter(pl.col("gap") > pl.duration(minutes=30))["same"].mean() < 0.4  # type: ignore[operator]


def test_consumables_are_bought_again_more_often(log: pl.DataFrame) -> None:
    """Heavy users aside, who buy everything again."""
    usual = log.filter(pl.len().over("user_id") <= 500, event_type="purchase")
    bought = usual.group_by("user_id", "item_id").agg(pl.len(), pl.col("category").first())
    consumable = pl.col("category").is_in(["food/coffee", "food/pantry", "beauty/care"])
    again = {key: rows["len"].gt(1).mean() for (key,), rows in bought.group_by(consumable)}
    assert again[True] > 1.5 * again[False] > 0


def test_weekends_are_busier(log: pl.DataFrame) -> None:
    weekday = log["timestamp"].str.head(10).str.to_date().dt.weekday()
    num_events: npt.NDArray[np.int64] = np.bincount(weekday.to_numpy(), minlength=8)[1:]
    assert num_events[5:].min() > 1.1 * num_events[:5].max()


def test_last_item_beats_popularity_threefold_without_immediate_repeats(by_user: pl.DataFrame) -> None:
    popular, markov = hit_rate(by_user, [], 10, given=""), hit_rate(by_user, [], 10)
    assert 0.05 < popular < 0.2
    assert markov > 4 * popular


def test_the_order_of_events_matters(by_user: pl.DataFrame) -> None:
    """Counts of what came before an item say little about what comes after it."""
    early = by_user.filter(~pl.col("late")).select(item="after", after="item", late="late", brand="brand")
    backward = hit_rate(pl.concat([early, by_user.filter("late").select(early.columns)]), [], 3)
    assert hit_rate(by_user, [], 3) > 1.5 * backward


def test_the_history_tells_more_than_the_last_item(by_user: pl.DataFrame) -> None:
    """The last brand seen before a plain item sharpens its successors."""
    assert hit_rate(by_user, ["brand"], 1) > 1.2 * hit_rate(by_user, [], 1)


def test_one_seed_gives_one_log_and_another_seed_another() -> None:
    first, again, other = (simulate(SimulateConfig(**SMALL, seed=seed)) for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


@pytest.mark.parametrize(
    "sizes", [SMALL, {"num_events": 5_000}, {"num_days": 60}, {"num_users": 100, "num_days": 60, "num_heavy_users": 0}]
)
def test_the_log_has_the_events_aimed_at_within_a_tenth(sizes: dict[str, int]) -> None:
    config = SimulateConfig(**sizes)
    assert abs(len(simulate(config)) / config.num_events - 1) < 0.1


def test_one_file_is_written_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    config = SimulateConfig(**SMALL)
    first, second = run(config, tmp_path / "a" / "x.csv.gz"), run(config, tmp_path / "y.csv.gz")
    assert first.read_bytes() == second.read_bytes()
    assert [p.name for p in first.parent.iterdir()] == ["x.csv.gz"]


def test_one_file_a_day_holds_the_same_events(tmp_path: Path) -> None:
    out = run(SimulateConfig(**SMALL, split_by_day=True), tmp_path / "days")
    files = sorted(out.iterdir())
    for path in files:
        assert set(pl.read_csv(path)["timestamp"].str.head(10)) == {path.name[len("events-") : -len(".csv.gz")]}
    assert pl.concat([pl.read_csv(path) for path in files]).equals(simulate(SimulateConfig(**SMALL)))


def test_a_folder_is_not_overwritten_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder stands here, expected to write a file"):
        run(SimulateConfig(**SMALL), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_items": 10}, "num_items = 10: input should be greater than or equal to 64"),
        ({"num_days": 7}, "num_days = 7: input should be greater than or equal to 60"),
        ({"seed": -1}, "seed = -1"),
        ({"shops": 2}, "unknown key 'shops'"),
        ({"num_events": 2_000}, "num_events = 2000, expected 3000 to"),
        ({"num_users": 10, "num_events": 60_000}, "num_events = 60000, expected 20 to 18000"),
    ],
)
def test_an_impossible_shop_is_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimulateConfig.from_mapping(values, "features simulate")


@pytest.mark.parametrize("option", ["users", "items", "events"])
def test_no_users_items_or_events_are_a_mistake_and_no_default(tmp_path: Path, option: str) -> None:
    command = ["simulate", "--out", str(tmp_path / "log.csv"), f"--{option}", "0"]
    with pytest.raises(ConfigError, match=f"num_{option} = 0: input should be greater"):
        CliRunner().invoke(features_app, command, catch_exceptions=False)
    assert not any(tmp_path.iterdir())


def test_a_shop_with_planted_taste_is_written_and_the_same_every_time(tmp_path: Path) -> None:
    def command(out: str, *more: str) -> list[str]:
        return ["simulate", "--out", str(tmp_path / out), "--taste-beyond", "32", "--users", "20", *more]

    for out in ("one.csv.gz", "two.csv.gz"):
        CliRunner().invoke(features_app, command(out, "--seed", "1"), catch_exceptions=False)
    CliRunner().invoke(features_app, command("other.csv.gz", "--seed", "2"), catch_exceptions=False)
    CliRunner().invoke(
        features_app, command("far.csv.gz", "--seed", "1", "--taste-beyond", "64"), catch_exceptions=False
    )
    one, two, other, far = ((tmp_path / f"{name}.csv.gz").read_bytes() for name in ("one", "two", "other", "far"))
    assert one == two != other
    assert pl.read_csv(far).height > 1.8 * pl.read_csv(one).height
    assert pl.read_csv(one)["user_id"].n_unique() == 20
    for mistake in (("--users", "0"), ("--seed", "-1")):
        with pytest.raises(ConfigError, match=f"{' '.join(mistake)}.*expected 1 or more, and 0 or more"):
            CliRunner().invoke(features_app, command("three.csv.gz", *mistake), catch_exceptions=False)
    with pytest.raises(ConfigError, match="--items: with --taste-beyond the items are fixed"):
        CliRunner().invoke(features_app, command("three.csv.gz", "--items", "9"), catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"three.parquet: with --taste-beyond .*--out is a .csv.gz file"):
        CliRunner().invoke(features_app, command("three.parquet"), catch_exceptions=False)


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_a_plain_log_is_its_days_in_order_and_nothing_else_is_left(tmp_path: Path, name: str) -> None:
    config = bulk.BulkConfig(num_users=50, num_items=20, num_events=3_000, num_days=3)
    bulk.run(config, tmp_path / name)
    read = pl.read_parquet if name.endswith("parquet") else pl.read_csv
    assert read(tmp_path / name).equals(pl.concat(list(bulk.days(config))))
    assert [path.name for path in tmp_path.iterdir()] == [name]
