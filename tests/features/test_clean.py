"""What cleaning does to values, column by column."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from features.clean import _stripped

PIECES = st.sampled_from(
    ["a", "~", "!", "\x7f", "é", "日", " ", "\t", "\n", "\x0b", "\x1f", "\x85", "\u00a0", "\u2003", "\u3000"]
)
TEXTS = st.none() | st.text(PIECES, max_size=4) | st.just("an id that is longer than twelve bytes")


@given(st.lists(TEXTS, max_size=6), st.lists(TEXTS, max_size=6))
def test_white_space_goes_and_nothing_else_does(one: list[str | None], other: list[str | None]) -> None:
    size = min(len(one), len(other))
    rows = pl.DataFrame(
        {"one": one[:size], "n": list(range(size)), "other": other[:size]},
        schema={"one": pl.String, "n": pl.Int64, "other": pl.String},
    )
    stripped = pl.col("one", "other").str.strip_chars()
    expected = rows.with_columns(stripped).with_columns(pl.col("one", "other").replace("", None))
    assert _stripped(rows).equals(expected)
