"""Which arm a user is in: decided by a salted hash, so that every worker says the same without asking."""

import hashlib
from collections.abc import Sequence

_BUCKETS = 2**64


def assign(user_id: str, salt: str, weights: Sequence[tuple[str, float]]) -> str:
    """The user's arm. Shares follow the weights, which need not sum to 1.

    A user keeps the arm while weights stay; when weights move, only the users between the old and the new
    boundary change. Another salt deals independently.

    Raises:
        ValueError: no arm has a positive weight, or one is negative.
    """
    total = sum(weight for _, weight in weights)
    if total <= 0 or any(weight < 0 for _, weight in weights):
        raise ValueError(f"weights {[weight for _, weight in weights]}: expected none negative and one above 0")
    hashed = hashlib.blake2b(f"{len(salt)}:{salt}{user_id}".encode(), digest_size=8).digest()
    place = int.from_bytes(hashed) / _BUCKETS * total
    passed = 0.0
    for arm, weight in weights:
        passed += weight
        if place < passed:
            return arm
    return [arm for arm, weight in weights if weight > 0][-1]  # rounding at the upper end
