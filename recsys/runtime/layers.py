"""Where in the decoder do two engines come apart? By what they keep of a session anyway, whatever they compute on.

The keys and values of layer n are the hidden states that enter it, seen through its norm and matrices: an error
that first shows in layer n comes from those, or from what layer n - 1 did after its own keys and values (attention,
feed-forward). What leaves the last layer is the user vector.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from recsys.contracts.ids import Floats

# L events, N layers, H heads, K head_dim

Pair = tuple[Floats, Floats]
"""Keys and values of the same events by two engines, the reference's first (`Engine.kept`)."""


class LayerRow(BaseModel):
    """Keys and values of one layer: the largest relative error (L2) of a window."""

    model_config = ConfigDict(frozen=True)
    layer: int
    """From 1."""
    keys: float
    values: float
    appended_keys: float | None
    """Of the last events alone, after they were appended to a session; None where no window has two events."""
    appended_values: float | None


def rows(whole: Sequence[Pair], appended: Sequence[Pair]) -> list[LayerRow]:
    """A row a layer, of windows encoded whole and of the events that were appended."""
    whole_N2, appended_N2 = _largest(whole), _largest(appended) if appended else None
    return [
        LayerRow(
            layer=n + 1,
            keys=keys,
            values=values,
            appended_keys=None if appended_N2 is None else appended_N2[n][0],
            appended_values=None if appended_N2 is None else appended_N2[n][1],
        )
        for n, (keys, values) in enumerate(whole_N2)
    ]


def in_units_of(found: Sequence[Floats], expected: Sequence[Floats]) -> tuple[Floats, ...]:
    """`expected` with each channel of its values scaled to the one found (least squares over all windows).

    AWQ divides channels of the values by what the output projection multiplies them with again, so a rounded engine
    keeps other values than the float model and is none the worse for it. A scale that is not undone there shows in
    the next layer.
    """
    product, square = (
        np.sum(
            [np.einsum("lnhk,lnhk->nhk", *pair, dtype=np.float64) for pair in zip(expected, others, strict=True)],
            axis=0,
        )
        for others in (found, expected)
    )
    factor_2NHK = np.divide(product, square, out=np.ones_like(product), where=square > 0).astype(np.float32)
    factor_2NHK[::2] = 1  # keys
    return tuple(kept_L2NHK * factor_2NHK for kept_L2NHK in expected)


def _largest(pairs: Sequence[Pair]) -> list[list[float]]:
    """Of each layer's keys and of its values."""
    found: list[list[float]] = np.max([_errors(*pair) for pair in pairs], axis=0).reshape(-1, 2).tolist()
    return found


def _errors(expected_L2NHK: Floats, found_L2NHK: Floats) -> Floats:
    expected_L2NHK, found_L2NHK = expected_L2NHK.astype(np.float32), found_L2NHK.astype(np.float32)
    squares = [np.square(part).sum(axis=(0, 2, 3)) for part in (found_L2NHK - expected_L2NHK, expected_L2NHK)]
    errors: Floats = np.sqrt(squares[0] / squares[1])
    return errors
