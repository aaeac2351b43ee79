"""Numbers of strings: the same whether few or many are known."""

import polars as pl

from features.numbering import Numbering


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
