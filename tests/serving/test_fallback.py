"""Which items a list at hand may show, beside the plain way to say it."""

import numpy as np
import pytest

from serving.fallback import Allowed


@pytest.mark.parametrize("seed", range(20))
def test_the_first_allowed_are_those_that_a_look_at_each_finds(seed: int) -> None:
    draw = np.random.default_rng(seed)
    size = int(draw.integers(1, 400))
    mask = draw.random(size) < draw.random()
    hidden, taken = ({*draw.choice(size, int(draw.integers(0, 5))).tolist()} for _ in range(2))
    seen = np.unique(draw.choice(size, int(draw.integers(0, size)))).astype(np.int32)
    tokens, num = draw.permutation(size).astype(np.int32), int(draw.integers(1, 20))
    allowed = Allowed(mask, hidden, seen)
    may = [bool(mask[token]) and token not in hidden and token not in {*seen.tolist()} for token in tokens.tolist()]
    assert [allowed[token] for token in tokens.tolist()] == may
    free = [place for place, token in enumerate(tokens.tolist()) if may[place] and token not in taken]
    assert allowed.first(tokens, num, taken).tolist() == free[:num]
