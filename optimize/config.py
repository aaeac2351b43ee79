"""How a checkpoint becomes a release."""

from typing import Literal

from pydantic import Field

from recsys.contracts.config import Config


class GateConfig(Config):
    """What an engine may lose against the float32 reference before publishing is refused."""

    max_recall_loss: float = Field(default=0.003, ge=0)
    """Relative loss of recall@10 that is allowed."""
    min_top10_overlap: float = Field(default=0.97, ge=0, le=1)
    """Decides where held-out users are too few, or absent, for recall to be measured."""
    min_users: int = Field(default=1000, ge=1)
    """Held-out users below which recall alone does not decide."""


class OptimizeConfig(Config):
    """Settings of the release builder."""

    engine: Literal["cpu"] = "cpu"
    """The engine to build. TensorRT takes its place beside it in `build_engine`."""
    bits: Literal[8, 32] = 8
    """Bits of a weight; 32 keeps float32."""
    num_threads: int = Field(default=2, ge=1)
    num_check_users: int = Field(default=2000, ge=1)
    """Most users whose answers are compared with the reference."""
    gate: GateConfig = GateConfig()
    seed: int = 0
