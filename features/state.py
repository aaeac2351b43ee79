"""What last night left in the artifact, and what a full rebuild keeps of it."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import polars as pl

from features import catalogue
from features.numbering import USERS_SCHEMA, hashed
from features.quarantine import QUARANTINE_FILE
from features.report import REPORT_FILE
from features.tombstones import TOMBSTONES_FILE, Tombstones, moving_away
from features.trouble import check
from recsys.contracts.artifact import FORMAT_VERSIONS, MANIFEST_NAME, Manifest, read_manifest
from recsys.contracts.errors import DamagedError
from recsys.histories import ITEMS_FILE, USERS_FILE, Generation, generations

DAYS_FILE = "days.parquet"
_FLOAT: Final = r"^(-?\d+\.0|-?\d+(\.\d+)?e\+?\d+|NaN)$"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The artifact as the next run needs it. Nothing else is kept between runs."""

    manifest: Manifest | None
    items: pl.DataFrame
    event_types: list[str]
    """In order of their numbers."""
    users: pl.DataFrame
    days: Counter[int]
    """Events by day since 1970."""
    generations: list[Generation]
    tombstones: Tombstones

    @classmethod
    def load(cls, out: Path, *, rebuild: bool = False, renumber: bool = False) -> Self:
        """The state of the artifact at `out`; an empty one where there is none or one of another version.

        For a rebuild only what it keeps is read (see `for_rebuild`): the rest may be damaged.

        Raises:
            DamagedError: the manifest or a file that is needed is not as it was written.
        """
        manifest = _manifest(out)
        state = cls(
            manifest=manifest,
            items=pl.DataFrame(schema=catalogue.SCHEMA),
            event_types=[],
            users=pl.DataFrame(schema=USERS_SCHEMA),
            days=Counter(),
            generations=[],
            tombstones=Tombstones.load(out),
        )
        if manifest is None or manifest.kind != "features" or manifest.format_version != FORMAT_VERSIONS["features"]:
            return state
        if renumber:
            return state
        tables = (ITEMS_FILE,) if rebuild else (ITEMS_FILE, USERS_FILE, DAYS_FILE, QUARANTINE_FILE)
        for name in tables if rebuild else sorted(manifest.files.keys() - {REPORT_FILE, TOMBSTONES_FILE}):
            check(out, name, manifest.files[name], is_hashed=name in tables)
        items = catalogue.with_first(pl.read_parquet(out / ITEMS_FILE, glob=False)).select(catalogue.SCHEMA.keys())
        state = replace(state, items=items, event_types=manifest.metrics["event_types"])
        if rebuild:
            return state
        return replace(
            state,
            users=hashed(pl.read_parquet(out / USERS_FILE, glob=False)).select(USERS_SCHEMA.keys()),
            days=Counter(dict(pl.read_parquet(out / DAYS_FILE, glob=False).rows())),
            generations=generations(out),
        )

    def for_rebuild(self, *, renumber: bool) -> "State":
        """What survives a full rebuild: the numbers of items and event types (unless told) and who is forgotten."""
        names = self.items.select(pl.col(name) if name in ("item_index", "item_id") else pl.lit(None).alias(name)
                                  for name in catalogue.SCHEMA)  # fmt: skip
        blank = names.cast(catalogue.SCHEMA).with_columns(pl.lit([0], pl.List(pl.UInt32)).alias("num_events_by_type"))  # type: ignore[arg-type]
        return replace(
            self,
            items=blank.clear() if renumber else blank,
            event_types=[] if renumber else self.event_types,
            users=self.users.clear(),
            days=Counter(),
            generations=[],
        )

    def may_hold_floats(self) -> bool:
        """Whether an id, an event type or a description may be the text of a float, such as "17850.0"."""
        described = [self.items[name] for name in ("item_id", "title", "category")]
        texts = [self.users["user_id"], *described, pl.Series(self.event_types, dtype=pl.String)]
        return "event_id" in self.metrics.get("fields", []) or any(text.str.contains(_FLOAT).any() for text in texts)

    @property
    def metrics(self) -> dict[str, Any]:
        """The manifest's metrics; empty without one."""
        return {} if self.manifest is None else self.manifest.metrics


def _manifest(out: Path) -> Manifest | None:
    if not (out / MANIFEST_NAME).exists():
        if (out / TOMBSTONES_FILE).exists():
            raise DamagedError(
                f"{out / MANIFEST_NAME}: file is missing; put it back from a copy, or begin anew: {moving_away(out)}, "
                "and run again"
            )
        return None
    try:
        return read_manifest(out)
    except DamagedError as error:
        raise DamagedError(f"{error}: {moving_away(out)}, and run again") from None
