"""Number formats and engines that a release names: written by `optimize`, read by the engines."""

from enum import StrEnum


class CacheFormat(StrEnum):
    """How an engine keeps the keys and values of a session."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BF16 = "bf16"
    """The upper half of float32's bits: its range, and an eighth of float16's precision."""
    INT8 = "int8"
    """Codes with one scale per event, layer and head."""


class ItemFormat(StrEnum):
    """How a release keeps its item vectors."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    """Codes with one scale per item."""


class Arithmetic(StrEnum):
    """What the CPU engine computes in. Weights, items and sessions are kept as they are."""

    AUTO = "auto"
    """bf16 where this processor multiplies in it and a full window is encoded quicker by it, else f32."""
    F32 = "f32"
    BF16 = "bf16"


class EngineName(StrEnum):
    """Engines by the names that settings and releases use."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    TIERED = "tiered"
    REFERENCE = "reference"
    """The float32 model, which the others are compared with."""
