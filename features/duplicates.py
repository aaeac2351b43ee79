"""Events that are in the log more than once."""

import polars as pl

from recsys.histories import EVENT_KEY, Integers

_USER_AND_ID = ("user_index", EVENT_KEY)
_COPY = ("user_index", "item_index", "timestamp_ms", "event_type")


class LateOriginalError(Exception):
    """A file that comes before known ones in order of names has the original of a known event."""

    def __init__(self, source: int) -> None:
        super().__init__(source)
        self.source = source
        """Number of that file."""


def first_of_each(stored: pl.DataFrame, new: pl.DataFrame, rank: Integers, *, drop_copies: bool) -> pl.DataFrame:
    """The new events that are neither repeats of an event id nor, if asked, copies of rows of earlier files.

    Of one user's rows with one id the first counts, by (order of file names, row). A copy has the user, item,
    moment and type of a row of an earlier file; repeats within a file are kept.

    Raises:
        LateOriginalError: a stored event would have to give way to a new one.
    """
    both = pl.concat(
        [stored.with_columns(at=pl.lit(-1, pl.Int64)), new.with_columns(at=pl.int_range(pl.len(), dtype=pl.Int64))],
        how="diagonal",
    )
    both = both.with_columns(place=pl.Series(rank[both["source"].to_numpy()]))
    if EVENT_KEY in both.columns:
        both = both.sort("place", "row").with_columns(pl.col(EVENT_KEY).fill_null(0))
        both = both.filter((pl.col(EVENT_KEY) == 0) | pl.struct(_USER_AND_ID).is_first_distinct())
    if drop_copies:
        both = both.filter(pl.col("place") == pl.col("place").min().over(_COPY))
    kept = both.filter(pl.col("at") >= 0).sort("at")
    if len(both) - len(kept) < len(stored):
        raise LateOriginalError(_late_source(stored, kept, [_USER_AND_ID, *([_COPY] if drop_copies else [])]))
    return new[kept["at"]]


def _late_source(stored: pl.DataFrame, kept: pl.DataFrame, keys: list[tuple[str, ...]]) -> int:
    """Of the first event that is kept though a stored one has the same key."""
    for key in keys:
        if set(key) <= {*stored.columns} & {*kept.columns}:
            late = kept.join(stored, on=key, how="semi")
            if len(late):
                return int(late["source"][0])
    raise AssertionError("no stored event gives way")


def applies(new: list[str], drop_copies: bool) -> bool:
    """Whether repeats have to be looked for in events with these columns."""
    return drop_copies or EVENT_KEY in new
