"""A realistic little shop's event log: deterministic, vectorised, with structure for a model to find.

Planted, so that what a model finds can be checked:

- Sessions stay mostly in one category and walk plain item -> branded item -> plain item. A plain item has
  three successors of each brand, and the user's brand, known from the history, decides which three.
- A user has one brand for good, tastes in categories that drift from an early set to a late one, a staple
  bought again and again, and a first item that comes back only in the last third of the user's time.
- Seasons, weekends and evenings; items launched over time; Zipf popularity with a tail of rare items;
  long-tailed activity with a few users over 2,048 events; view -> cart -> purchase of one item.
"""

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from recsys.contracts.config import Config
from recsys.contracts.errors import ConfigError
from recsys.contracts.files import write_whole

# U users (or those active in a step), V items, C categories, B brands, S successors, D days
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Generator = np.random.Generator

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
EVENT_TYPES: Final = ("view", "cart", "purchase")
BRANDS: Final = ("Norvia", "Halden", "Brisa", "Tarrow", "Osmira")
_DAY_S, _ROWS_AT_ONCE = 86_400, 250_000
_SUCCESSOR_SHARE = (0.6, 0.3, 0.1)  # the last successor lies in the next category (a complement)
_TAIL, _TAIL_WEIGHT = 0.25, 0.25  # share of items that nothing leads to; what their popularity is multiplied by
_STAYS, _RETURNS, _FOLLOWS, _LOYAL = 0.82, 0.06, 0.8, 0.9
_SEASONAL, _STAPLE, _RECALL = 0.15, 0.16, 0.1
_CART, _STAPLE_CART, _PURCHASE = 0.1, 0.8, 0.5
_EVENTS_PER_STEP = 1 + 1.5 * (_CART + (1 - _STAYS) * _STAPLE * (_STAPLE_CART - _CART))
_HEAVY_STEPS, _MOST_STEPS = (2_600, 2_150), 1_500
_CONSUMABLE = ("food/coffee", "food/pantry", "beauty/care")
# fmt: off
_NOUNS: Final = {
    "home/kitchen": ("kettle", "pan", "mug", "jar"), "home/bedroom": ("pillow", "blanket", "lamp", "mirror"),
    "home/garden": ("planter", "hose", "bench", "lantern"), "home/office": ("desk", "chair", "notebook", "stapler"),
    "tech/audio": ("headset", "speaker", "radio", "amp"), "tech/computers": ("keyboard", "mouse", "monitor", "cable"),
    "tech/photo": ("tripod", "lens", "flash", "bag"), "fashion/shoes": ("sneaker", "boot", "sandal", "loafer"),
    "fashion/tops": ("shirt", "sweater", "jacket", "vest"), "fashion/accessories": ("belt", "scarf", "hat", "wallet"),
    "sports/running": ("socks", "shorts", "bottle", "watch"), "sports/outdoor": ("tent", "rope", "stove", "backpack"),
    "food/coffee": ("espresso", "filter", "beans", "grinder"), "food/pantry": ("oil", "pasta", "rice", "honey"),
    "kids/toys": ("puzzle", "blocks", "train", "doll"), "beauty/care": ("soap", "cream", "shampoo", "brush"),
}
# fmt: on
_ADJECTIVES = ("Classic", "Small", "Large", "Plain", "Vintage", "Bright", "Quiet", "Sturdy", "Light", "Deep")
_STUFFS = ("oak", "steel", "cotton", "linen", "copper", "glass", "wool", "bamboo", "leather", "clay")


class SimulateConfig(Config):
    """The size of the shop. The defaults are the bundled sample."""

    num_users: int = Field(default=1_500, ge=10)
    num_items: int = Field(default=800, ge=64)
    num_events: int = Field(default=60_000, ge=100)
    """Events aimed at; the log has as many within 10 %."""
    num_days: int = Field(default=180, ge=60)
    num_heavy_users: int = Field(default=4, ge=0)
    """Users with over 2,048 events each; fewer where they would take more than half of `num_events`."""
    split_by_day: bool = False
    """Write a folder with one file a day instead of one file."""
    seed: int = Field(default=7, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """2 events a user at least, 10 a user and day at most: more would not fit into the evenings."""
        most = 10 * self.num_users * self.num_days
        if not 2 * self.num_users <= self.num_events <= most:
            raise ValueError(f"num_events = {self.num_events}, expected {2 * self.num_users} to {most} for these users")
        return self


@dataclass(frozen=True, slots=True)
class _Shop:
    """The catalogue. Items are sorted by category, most popular first within each."""

    category_V: Ints
    launch_V: Floats
    """Day from which an item is sold; the item two places before a late one is never late."""
    successors_VBS: Ints
    cumulative_V: Floats
    """Running sum of popularity, so that one search draws an item of a category."""
    first_C: Ints
    table: pl.DataFrame


@dataclass(frozen=True, slots=True)
class _Crowd:
    """The users, most active first; a step is one item viewed."""

    steps_U: Ints
    start_U: Floats
    """Share of the shop's activity that is over when the user arrives."""
    brand_U: Ints
    early_UC: Ints
    late_UC: Ints
    staple_U: Ints


def run(config: SimulateConfig, out: Path) -> Path:
    """Write the log as CSV in gzip; the same config gives the same bytes. Returns `out`.

    With `split_by_day`, `out` is a folder of events-YYYY-MM-DD.csv.gz.

    Raises:
        ConfigError: `out` is a folder where a file is to be written, or the other way round.
    """
    if out.exists() and out.is_dir() != config.split_by_day:
        found, expected = ("folder", "file") if out.is_dir() else ("file", "folder")
        raise ConfigError(f"{out}: a {found} stands here, expected to write a {expected}; choose another path")
    events = simulate(config)
    if config.split_by_day:
        for (day,), rows in events.group_by(pl.col("timestamp").str.head(10), maintain_order=True):
            write([rows], out / f"events-{day}.csv.gz")
    else:
        write(events.iter_slices(_ROWS_AT_ONCE), out)
    return out


def write(parts: Iterable[pl.DataFrame], path: Path) -> None:
    """A log as CSV in gzip, whole or not at all; the same rows give the same bytes."""

    def fill(unfinished: Path) -> None:
        with unfinished.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
            for number, part in enumerate(parts):
                file.write(part.write_csv(include_header=number == 0).encode())

    write_whole(path, fill)


def simulate(config: SimulateConfig) -> pl.DataFrame:
    """Columns user_id, item_id, timestamp, event_type, title, category, price; in order of time."""
    generator = np.random.default_rng(config.seed)
    shop = _catalogue(config, generator)
    events = _walk(config, shop, _crowd(config, shop, generator), generator)
    shuffled = generator.permutation(config.num_users) + 1  # the id must not tell the activity
    moment = pl.lit(START.replace(tzinfo=None)) + pl.duration(seconds="second")
    return (
        events.with_columns(user=pl.lit(pl.Series(shuffled)).gather(pl.col("user")))
        .filter(pl.col("second") < config.num_days * _DAY_S)
        .sort("second", "user", "kind")
        .join(shop.table, on="item", how="left", maintain_order="left")
        .select(
            (pl.lit("u") + pl.col("user").cast(pl.String).str.zfill(5)).alias("user_id"),
            "item_id",
            moment.dt.strftime("%Y-%m-%dT%H:%M:%SZ").alias("timestamp"),
            pl.col("kind").replace_strict(dict(enumerate(EVENT_TYPES)), return_dtype=pl.String).alias("event_type"),
            pl.col("title", "category", "price"),
        )
    )


def _catalogue(config: SimulateConfig, generator: Generator) -> _Shop:
    num_items, names = config.num_items, list(_NOUNS)
    category_V = np.sort(np.arange(num_items) % len(names))
    first_C = np.searchsorted(category_V, np.arange(len(names)))
    size_C = np.bincount(category_V)
    rank_V = np.arange(num_items) - first_C[category_V]
    popularity_V = (rank_V + 2.0) ** -1.1
    popularity_V *= np.where(rank_V >= (1 - _TAIL) * size_C[category_V], _TAIL_WEIGHT, 1.0)
    late = (rank_V % 4 >= 2) & (generator.random(num_items) < 0.4)
    launch_V = np.where(late, generator.random(num_items) * config.num_days * 0.97, 0.0)
    successors_VBS = _successors(category_V, rank_V, first_C, size_C, generator)
    brand_V, (adjective_V, stuff_V) = rank_V // 2 % len(BRANDS), generator.integers(0, 10, (2, num_items))
    firsts = [BRANDS[b] if r % 2 else _ADJECTIVES[a] for r, b, a in zip(rank_V, brand_V, adjective_V, strict=True)]
    nouns = [_NOUNS[names[c]][r % len(_NOUNS[names[c]])] for c, r in zip(category_V, rank_V, strict=True)]
    level_C = generator.normal(3.0, 0.7, len(names))
    table = pl.DataFrame(
        {
            "item": np.arange(num_items),
            "item_id": [f"sku-{i:05d}" for i in generator.permutation(num_items) + 1],
            "title": [f"{f} {_STUFFS[s]} {n}" for f, s, n in zip(firsts, stuff_V, nouns, strict=True)],
            "category": [names[c] for c in category_V],
            "price": np.round(np.exp(level_C[category_V] + generator.normal(0.0, 0.6, num_items)), 2),
        }
    )
    return _Shop(category_V, launch_V, successors_VBS, np.cumsum(popularity_V), first_C, table)


def _successors(category_V: Ints, rank_V: Ints, first_C: Ints, size_C: Ints, generator: Generator) -> Ints:
    """Three successors per item and brand, of the item's own, own and next category.

    Plain items (even rank) lead to items of the brand. Branded ones (odd rank) lead to plain ones, the
    same for their siblings of all brands: a plain item does not tell the brand it was reached by.
    """
    num_brands = len(BRANDS)
    home_VS = (category_V[:, None] + np.array([0, 0, 1])) % len(first_C)
    size_VBS, brand_B = np.repeat(size_C[home_VS][:, None], num_brands, axis=1), np.arange(num_brands)[:, None]
    num_plain = size_VBS * (1 - _TAIL) / 2  # as many as there are branded ones outside the tail
    draw = generator.random(size_VBS.shape) ** 1.3
    branded = 2 * ((draw * np.maximum(1, num_plain // num_brands)).astype(np.int64) * num_brands + brand_B) + 1
    plain = 2 * (draw[:, :1] * num_plain[:, :1]).astype(np.int64)
    plain = plain[np.arange(len(rank_V)) - rank_V % (2 * num_brands)]
    rank_VBS = np.where(rank_V[:, None, None] % 2 == 1, plain, branded) % size_VBS
    return np.asarray(first_C[home_VS][:, None] + rank_VBS, dtype=np.int64)


def _crowd(config: SimulateConfig, shop: _Shop, generator: Generator) -> _Crowd:
    num_users, num_categories = config.num_users, len(shop.first_C)
    steps_U = _steps(config, generator)
    weight_C = 1 / (np.arange(num_categories) + 4.0)
    early, late = generator.choice(num_categories, (2, num_users, 3), p=weight_C / weight_C.sum())
    consumable = np.array([list(_NOUNS).index(name) for name in _CONSUMABLE])
    staple = _popular_item(shop, generator.choice(consumable, num_users), generator)
    start = generator.random(num_users) * 0.7 * np.clip(1 - steps_U / 1_000, 0.05, 1)  # the active come early
    return _Crowd(steps_U, start, generator.integers(0, len(BRANDS), num_users), early, late, staple)


def _steps(config: SimulateConfig, generator: Generator) -> Ints:
    """Items viewed per user, most active first: long-tailed, the heavy users on top."""
    total = config.num_events / _EVENTS_PER_STEP
    num_heavy = min(config.num_heavy_users, int(total / 2 / _HEAVY_STEPS[0]), config.num_users // 2)
    heavy = np.linspace(*_HEAVY_STEPS, num_heavy)
    rest = generator.pareto(1.5, config.num_users - num_heavy) + 0.2
    most = max(_MOST_STEPS, 3 * (target := total - heavy.sum()) / len(rest))
    for _ in range(30):  # clipping moves the sum: scale until it settles
        rest = np.clip(rest * target / rest.sum(), 1, most)
    return np.sort(np.round(np.concatenate([heavy, rest])).astype(np.int64))[::-1]


def _walk(config: SimulateConfig, shop: _Shop, crowd: _Crowd, generator: Generator) -> pl.DataFrame:
    """All users step by step: columns user, item, second, kind, in no order."""
    weekday_D = (START.weekday() + np.arange(config.num_days)) % 7
    busy_D = np.cumsum(np.where(weekday_D >= 5, 1.5, 1.0))  # Saturdays and Sundays count 1.5
    share_D = np.append(0.0, busy_D / busy_D[-1])
    current, before, first = np.zeros((3, config.num_users), dtype=np.int64)
    brand, clock = crowd.brand_U.copy(), np.zeros(config.num_users)
    parts: list[pl.DataFrame] = []
    for step in range(int(crowd.steps_U[0])):
        u = np.arange(num_active := int(np.searchsorted(-crowd.steps_U, -step)))  # users are sorted: a prefix
        progress = step / crowd.steps_U[u]
        share = crowd.start_U[u] + (1 - crowd.start_U[u]) * progress
        day = np.floor(np.interp(share, share_D, np.arange(len(share_D))))
        stays = (generator.random(num_active) < _STAYS) & (step > 0)
        evening = day * _DAY_S + 3600 * (7 + 16 * generator.beta(2.2, 1.5, num_active))
        opening = np.floor(np.maximum(evening, clock[u] + 2_400))
        clock[u] = np.where(stays, clock[u] + generator.integers(25, 240, num_active), opening)
        any_brand = generator.integers(0, len(BRANDS), num_active)
        of_session = np.where(generator.random(num_active) < _LOYAL, crowd.brand_U[u], any_brand)
        brand[u] = np.where(stays, brand[u], of_session)
        opened = _open(shop, crowd, first[u], progress, day, generator)
        chosen = np.where(stays, _browse(shop, current[u], before[u], brand[u], generator), opened)
        chosen = np.where(shop.launch_V[chosen] <= clock[u] / _DAY_S, chosen, chosen - 2)
        before[u], current[u] = np.where(stays, current[u], chosen), chosen
        first = chosen.copy() if step == 0 else first
        parts += _funnel(u, chosen, clock[u], ~stays & (chosen == crowd.staple_U[u]), generator)
    return pl.concat(parts)


def _open(shop: _Shop, crowd: _Crowd, first_U: Ints, progress_U: Floats, day_U: Floats, generator: Generator) -> Ints:
    """The item that opens a session: by taste or season, the staple, or late on the user's first item."""
    u = np.arange(len(progress_U))
    which = np.minimum(generator.geometric(0.55, len(u)) - 1, 2)
    taste = np.where(generator.random(len(u)) < progress_U, crowd.late_UC[u, which], crowd.early_UC[u, which])
    season = (day_U // 30).astype(np.int64) * 3 % len(shop.first_C)
    taste = np.where(generator.random(len(u)) < _SEASONAL, season, taste)
    opened = _popular_item(shop, taste, generator)
    opened = np.where(generator.random(len(u)) < _STAPLE, crowd.staple_U[u], opened)
    return np.where((generator.random(len(u)) < _RECALL) & (progress_U > 2 / 3), first_U, opened)


def _browse(shop: _Shop, current_U: Ints, before_U: Ints, brand_U: Ints, generator: Generator) -> Ints:
    """The next item of a session: a successor, another of the category, or back to the one before."""
    which = np.searchsorted(np.cumsum(_SUCCESSOR_SHARE)[:-1], generator.random(len(current_U)), side="right")
    successor = shop.successors_VBS[current_U, brand_U, which]
    near = _popular_item(shop, shop.category_V[current_U], generator)
    browsed = np.where(generator.random(len(current_U)) < _FOLLOWS, successor, near)
    return np.where(generator.random(len(current_U)) < _RETURNS, before_U, browsed)


def _popular_item(shop: _Shop, category_U: Ints, generator: Generator) -> Ints:
    """One item of each category, drawn by popularity."""
    below = np.concatenate([[0.0], shop.cumulative_V])
    start, end = shop.first_C[category_U], np.append(shop.first_C[1:], len(shop.category_V))[category_U]
    drawn = below[start] + generator.random(len(category_U)) * (below[end] - below[start])
    items = np.searchsorted(shop.cumulative_V, drawn, side="right")
    return np.asarray(np.clip(items, start, end - 1), dtype=np.int64)


def _funnel(user: Ints, item: Ints, second: Floats, staple: Bools, generator: Generator) -> list[pl.DataFrame]:
    """The views, for some of them the cart 8 s later, and for some of those the purchase 12 s after it."""
    carted = generator.random(len(user)) < np.where(staple, _STAPLE_CART, _CART)
    bought = carted & (generator.random(len(user)) < _PURCHASE)
    schema = {"user": pl.Int32, "item": pl.Int32, "second": pl.Int32, "kind": pl.UInt8}
    return [
        pl.DataFrame([user[rows], item[rows], second[rows] + later, np.full(rows.sum(), kind)], schema=schema)
        for kind, rows, later in ((0, np.ones_like(carted), 0), (1, carted, 8), (2, bought, 20))
    ]
