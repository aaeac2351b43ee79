"""What the CPU engine computes in: chosen on the machine at hand, by the time that a full window takes."""

from collections.abc import Callable
from typing import Any, Final

from optimize import tiers
from recsys.contracts.errors import ConfigError
from recsys.contracts.precision import Arithmetic
from recsys.runtime import openvino
from recsys.runtime.engine import Engine

_WORTH_IT: Final = 0.9
"""bf16 has to take this share of float32's time, at most: it costs some accuracy."""


def choose(wanted: Arithmetic, opened: Callable[[Arithmetic], Engine], num_items: int, seed: int = 0) -> dict[str, Any]:
    """`arithmetic` as the release names it, and the `arithmetic_ms` by length that it was chosen by, if any.

    Raises:
        ConfigError: this processor does not multiply in what is wanted.
    """
    has_bf16 = openvino.has_bf16()
    if wanted is Arithmetic.BF16 and not has_bf16:
        raise ConfigError('arithmetic "bf16": this processor does not multiply in it; use "auto" or "f32"')
    if wanted is not Arithmetic.AUTO or not has_bf16:
        return {"arithmetic": Arithmetic.F32 if wanted is Arithmetic.AUTO else wanted, "arithmetic_ms": []}
    found = tiers.measure(opened(Arithmetic.F32), opened(Arithmetic.BF16), num_items, seed=seed)["by_length"]
    rows = [{"length": row["length"], "f32": row["short_ms"], "bf16": row["long_ms"]} for row in found]
    is_worth_it = rows[-1]["bf16"] <= _WORTH_IT * rows[-1]["f32"]
    return {"arithmetic": Arithmetic.BF16 if is_worth_it else Arithmetic.F32, "arithmetic_ms": rows}
