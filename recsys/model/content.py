"""Vectors for items that were not trained, from what the catalogue says of them: title, category, price.

Terms weighted by TF-IDF, and ridge regression from them onto the vectors of trained items: an item is placed where
items with its words, its category and its price stand. Source: content-to-factor maps of van den Oord, Dieleman,
Schrauwen, NIPS 2013, here linear.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.contracts.ids import Floats, Item

# V trained items, C other items, D width, F terms

DEFAULT_RIDGE = 3.0
_WORD = re.compile(r"\w+")
_CATEGORY_LEVEL = re.compile(r"[/.>|]")
_STEPS_PER_DOUBLING = 2
"""Prices fall into steps of √2."""
_LEAST_ITEMS = 2
"""A term of fewer trained items says nothing of others."""


def terms(item: Item) -> list[str]:
    """Words and pairs of words of the title, levels of the category, the step of the price; [] if none is known."""
    words = _WORD.findall((item.title or "").lower())
    found = words + [f"{a} {b}" for a, b in pairwise(words)]
    levels = [part for part in _CATEGORY_LEVEL.split(item.category or "") if part]
    found += ["category:" + "/".join(levels[: depth + 1]) for depth in range(len(levels))]
    if item.price is not None and item.price > 0:
        found.append(f"price:{round(_STEPS_PER_DOUBLING * math.log2(item.price))}")
    return found


class ContentMap:
    """From the terms of an item to a vector."""

    def __init__(self, weighting: Any, regression: Any) -> None:
        self._weighting = weighting
        self._regression = regression

    @classmethod
    def fit(
        cls, items: Sequence[Item], vectors_VD: Floats, num_events_V: npt.NDArray[np.int64], ridge: float
    ) -> "ContentMap | None":
        """Least squares over items with terms, weighted by the logarithm of their events; None if too few have any."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge

        described = [i for i, item in enumerate(items) if terms(item)]
        if len(described) < 2:
            return None
        weighting = TfidfVectorizer(analyzer=terms, min_df=_LEAST_ITEMS, sublinear_tf=True, dtype=np.float32)
        try:
            terms_VF = weighting.fit_transform([items[i] for i in described])
        except ValueError:  # no term is shared
            return None
        regression = Ridge(alpha=ridge, solver="sparse_cg", tol=1e-4)
        regression.fit(terms_VF, vectors_VD[described], sample_weight=np.log1p(num_events_V[described]))
        return cls(weighting, regression)

    def vectors(self, items: Sequence[Item]) -> Floats:
        """Vectors of shape [C, D]; of an item without terms, the mean."""
        found: Floats = self._regression.predict(self._weighting.transform(items)).astype(np.float32)
        return found


def place(kept: Sequence[Item], kept_VD: Floats, new: Sequence[Item], ridge: float) -> Floats | None:
    """Vectors of new items, shape [N, D]; None where there is none, or the kept items say too little."""
    content = ContentMap.fit(kept, kept_VD, np.array([item.num_events for item in kept]), ridge) if new else None
    return None if content is None else content.vectors(new)
