"""A realistic little shop's event log: deterministic, vectorised, with structure for a model to find.

Planted: sessions inside one category; each item has a few natural successors (what goes with it), so the
order of events matters; tastes that drift from an early to a late set of categories; staples that a user
buys again and again months apart; seasons; items launched over time; Zipf popularity with a tail of rare
items; long-tailed activity with a few users over 2,048 events; view -> cart -> purchase.
"""

import gzip
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from recsys.contracts.config import Config

# U users active in a step, V items

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_DAY_S = 86_400
_NUM_SUCCESSORS = 3
_SUCCESSOR_SHARE = (0.6, 0.3, 0.1)
_FOLLOWS, _IN_SESSION, _STAPLE, _CART, _PURCHASE = 0.75, 0.8, 0.15, 0.12, 0.5
_EVENTS_PER_STEP = 1 + _CART + _CART * _PURCHASE
_NOUNS: Final = {
    "home/kitchen": ("kettle", "pan", "mug", "jar", "knife", "board"),
    "home/bedroom": ("pillow", "blanket", "lamp", "mirror"),
    "home/garden": ("planter", "hose", "bench", "lantern"),
    "home/office": ("desk", "chair", "notebook", "stapler"),
    "electronics/audio": ("headphones", "speaker", "microphone", "amplifier"),
    "electronics/computers": ("keyboard", "mouse", "monitor", "cable"),
    "electronics/photo": ("tripod", "lens", "flash", "bag"),
    "fashion/shoes": ("sneaker", "boot", "sandal", "loafer"),
    "fashion/tops": ("shirt", "sweater", "jacket", "vest"),
    "fashion/accessories": ("belt", "scarf", "hat", "wallet"),
    "sports/running": ("socks", "shorts", "bottle", "watch"),
    "sports/outdoor": ("tent", "rope", "stove", "backpack"),
    "food/coffee": ("espresso", "filter", "beans", "grinder"),
    "food/pantry": ("oil", "pasta", "rice", "honey"),
    "kids/toys": ("puzzle", "blocks", "train", "doll"),
    "beauty/care": ("soap", "cream", "shampoo", "brush"),
}
_WORDS = ("Classic", "Small", "Large", "Nordic", "Vintage", "Bright", "Quiet", "Sturdy", "Light", "Royal")
_STUFFS = ("oak", "steel", "cotton", "linen", "copper", "glass", "wool", "bamboo", "leather", "clay")


class SimulateConfig(Config):
    """The size of the shop. The defaults are the bundled sample."""

    num_users: int = Field(default=1_000, ge=10)
    num_items: int = Field(default=900, ge=64)
    num_events: int = Field(default=45_000, ge=100)
    """Events aimed at; the log has up to 15 % fewer, as some fall behind its last day."""
    num_days: int = Field(default=180, ge=7)
    num_heavy_users: int = Field(default=4, ge=0)
    """Users with over 2,048 events each, if `num_events` allows."""
    seed: int = Field(default=7, ge=0)


@dataclass(frozen=True, slots=True)
class _Shop:
    """The catalogue. Items are sorted by category, most popular first within each."""

    category_V: npt.NDArray[np.int64]
    launch_V: npt.NDArray[np.float64]
    successors_VS: npt.NDArray[np.int64]
    cumulative_V: npt.NDArray[np.float64]
    """Running sum of popularity, so that one search draws an item of a category."""
    first_C: npt.NDArray[np.int64]
    table: pl.DataFrame


def run(config: SimulateConfig, out: Path) -> Path:
    """Write the log as CSV in gzip; the same config gives the same bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
        file.write(simulate(config).write_csv().encode())
    return out


def simulate(config: SimulateConfig) -> pl.DataFrame:
    """Columns user_id, item_id, timestamp, event_type, title, category, price; in order of time."""
    generator = np.random.default_rng(config.seed)
    shop = _catalogue(config, generator)
    user, item, second, kind = _walk(config, shop, generator)
    order = np.lexsort((kind, second, user))
    order = order[np.argsort(second[order], kind="stable")]
    moments = pl.Series(second[order] * 1000 + int(START.timestamp() * 1000)).cast(pl.Datetime("ms"))
    events = pl.DataFrame({"user": user[order], "item": item[order], "kind": kind[order]}).with_columns(when=moments)
    width = max(4, len(str(config.num_users)))
    return events.join(shop.table, on="item", how="left", maintain_order="left").select(
        user_id=pl.lit("u") + pl.col("user").cast(pl.String).str.zfill(width),
        item_id="item_id",
        timestamp=pl.col("when").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        event_type=pl.col("kind").replace_strict({0: "view", 1: "cart", 2: "purchase"}, return_dtype=pl.String),
        title="title",
        category="category",
        price="price",
    )


def _catalogue(config: SimulateConfig, generator: np.random.Generator) -> _Shop:
    num_items, names = config.num_items, list(_NOUNS)
    category_V = np.sort(np.arange(num_items) % len(names))
    first_C = np.searchsorted(category_V, np.arange(len(names)))
    rank_V = np.arange(num_items) - first_C[category_V]
    popularity_V = 1.0 / (rank_V + 2.0) ** 1.1
    late = generator.random(num_items) < 0.15
    launch_V = np.where(late & (rank_V > 0), generator.random(num_items) * config.num_days * 0.8, 0.0)
    # What goes with an item: two of its own category, one of the next category (a complement).
    size_C = np.bincount(category_V)
    home = category_V[:, None] + np.array([0, 0, 1])
    home %= len(names)
    draw = (generator.random((num_items, _NUM_SUCCESSORS)) ** 1.5 * size_C[home]).astype(np.int64)
    nouns = [_NOUNS[names[c]][r % len(_NOUNS[names[c]])] for c, r in zip(category_V, rank_V, strict=True)]
    first, second = generator.integers(0, 10, (2, num_items))
    table = pl.DataFrame(
        {
            "item": np.arange(num_items),
            "item_id": [f"sku-{i:05d}" for i in generator.permutation(num_items) + 1],
            "title": [f"{_WORDS[a]} {_STUFFS[b]} {n}" for a, b, n in zip(first, second, nouns, strict=True)],
            "category": [names[c] for c in category_V],
            "price": np.round(np.exp(generator.normal(3.0, 0.8, num_items)), 2),
        }
    )
    return _Shop(category_V, launch_V, first_C[home] + draw, np.cumsum(popularity_V), first_C, table)


def _lengths(config: SimulateConfig, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Browsing steps per user, most active first: long-tailed, a few heavy users on top."""
    steps = config.num_events / _EVENTS_PER_STEP
    heavy = min(config.num_heavy_users, int(steps // 4_000), config.num_users // 10)
    heavy_steps = np.linspace(2_700, 2_150, heavy).astype(np.int64)
    rest = generator.pareto(1.6, config.num_users - heavy) + 0.25
    rest *= (steps - heavy_steps.sum()) / rest.sum()
    return np.sort(np.concatenate([heavy_steps, np.clip(np.round(rest), 2, 2_000).astype(np.int64)]))[::-1]


def _walk(config: SimulateConfig, shop: _Shop, generator: np.random.Generator) -> tuple[Any, Any, Any, Any]:
    """All users step by step: (user, item, second, kind) arrays."""
    lengths = _lengths(config, generator)
    num_users, num_categories = config.num_users, len(shop.first_C)
    early, late = generator.integers(0, num_categories, (2, num_users, 3))
    staple = _popular_item(shop, generator.integers(0, num_categories, num_users), generator)
    start_day = generator.random(num_users) * config.num_days * np.where(lengths > 1_000, 0.05, 0.6)
    current = np.zeros(num_users, dtype=np.int64)
    clock = start_day * _DAY_S
    columns: list[tuple[Any, Any, Any, Any]] = []
    for step in range(int(lengths[0])):
        active = int(np.searchsorted(-lengths, -step, side="left"))  # users sorted by length: a prefix
        u = np.arange(active)
        progress = step / lengths[:active]
        day = start_day[:active] + (config.num_days - start_day[:active]) * progress
        stays = (generator.random(active) < _IN_SESSION) & (step > 0)
        hour = 8 + 14 * generator.beta(2, 1.5, active)
        opening = np.maximum(np.floor(day) * _DAY_S + hour * 3600, clock[:active] + 1800)
        clock[:active] = np.where(stays, clock[:active] + generator.integers(20, 180, active), opening)
        taste = _taste(early[:active], late[:active], progress, day, generator)
        fresh = _popular_item(shop, taste, generator)
        fresh = np.where(generator.random(active) < _STAPLE, staple[:active], fresh)
        which = generator.choice(_NUM_SUCCESSORS, active, p=_SUCCESSOR_SHARE)
        next_item = shop.successors_VS[current[:active], which]
        near = _popular_item(shop, shop.category_V[current[:active]], generator)
        browsed = np.where(generator.random(active) < _FOLLOWS, next_item, near)
        chosen = np.where(stays, browsed, fresh)
        launched = shop.launch_V[chosen] <= clock[:active] / _DAY_S
        chosen = np.where(launched, chosen, shop.first_C[shop.category_V[chosen]])
        current[:active] = chosen
        columns += _funnel(u, chosen, clock[:active].astype(np.int64), generator)
    user, item, second, kind = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    shuffled = generator.permutation(num_users) + 1  # activity must not be told by the id
    inside = second < config.num_days * _DAY_S
    return shuffled[user[inside]], item[inside], second[inside], kind[inside]


def _taste(early: Any, late: Any, progress: Any, day: Any, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Category of a new session: drifts from the early set to the late one; a season pulls one in ten."""
    which = np.minimum(generator.geometric(0.55, len(progress)) - 1, early.shape[1] - 1)
    rows = np.arange(len(progress))
    chosen = np.where(generator.random(len(progress)) < progress, late[rows, which], early[rows, which])
    season = (day // 30).astype(np.int64) * 3 % len(_NOUNS)
    taste: npt.NDArray[np.int64] = np.where(generator.random(len(progress)) < 0.1, season, chosen)
    return taste


def _popular_item(
    shop: _Shop, category_U: npt.NDArray[np.int64], generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """One item of each category, drawn by popularity."""
    below = np.concatenate([[0.0], shop.cumulative_V])
    ends = np.append(shop.first_C[1:], len(shop.category_V))
    low, high = below[shop.first_C[category_U]], below[ends[category_U]]
    drawn = np.searchsorted(shop.cumulative_V, low + generator.random(len(category_U)) * (high - low), side="right")
    items: npt.NDArray[np.int64] = np.clip(drawn, shop.first_C[category_U], ends[category_U] - 1)
    return items


def _funnel(user: Any, item: Any, second: Any, generator: np.random.Generator) -> list[tuple[Any, Any, Any, Any]]:
    """The view, and for some the cart after it, and for some of those the purchase."""
    events = [(user, item, second, np.zeros(len(user), dtype=np.int64))]
    for kind, share, later in ((1, _CART, 5), (2, _PURCHASE, 10)):
        chosen = generator.random(len(user)) < share
        user, item, second = user[chosen], item[chosen], second[chosen] + later
        events.append((user, item, second, np.full(len(user), kind)))
    return events
