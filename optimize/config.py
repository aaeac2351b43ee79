"""How a checkpoint becomes a release."""

from typing import Literal, Self

from pydantic import Field, model_validator

from optimize.index import IndexConfig
from optimize.rounding import WeightFormat
from optimize.summaries import SummariesConfig
from optimize.tensorrt import TensorRtConfig
from recsys.contracts.config import Config
from recsys.contracts.precision import Arithmetic, CacheFormat, EngineName, ItemFormat


class GateConfig(Config):
    """What an engine may lose against the float32 reference before publishing is refused."""

    max_loss: float = Field(default=0.003, ge=0)
    """Relative loss of recall@10 and of NDCG@10 that is allowed."""
    max_relative_error: float = Field(default=0.1, gt=0)
    """Of the user vector, encoded whole or appended to, always: where counts answer by themselves, lists hide a
    damaged decoder."""
    min_top10_overlap: float = Field(default=0.99, ge=0, le=1)
    """Decides where the intervals of the loss do not. What the default engine reached: `docs/operate.md`."""
    min_users: int = Field(default=1000, ge=1)
    """Held-out users from which on an interval may let a release pass, and an estimate beyond the limit refuses it
    where the interval says that anything is lost at all; `LEAST_DIFFERENT` of them have to score differently."""
    most_users: int = Field(default=20_000, ge=1)
    """Held-out users that are looked at where `num_check_users` leave the interval of a loss on both sides of
    `max_loss`, or where some score differently and too few to tell: four times as many, until they decide, or these,
    or all are looked at."""


class CudaConfig(Config):
    """Settings of the torch engine."""

    precision: Literal["bf16", "fp16", "float32"] = "bf16"
    device: str = "cuda"
    """In torch's words; `cpu` for a check without a GPU."""


class TieredConfig(Config):
    """Two engines that serve as one."""

    short: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    long: Literal["cpu", "cuda", "tensorrt"] = "cuda"
    threshold: int | None = Field(default=None, ge=0)
    """Most events of a window for `short`; None: measured on this machine."""


class OptimizeConfig(Config):
    """Settings of the release builder."""

    engine: EngineName = EngineName.CPU
    """The engine that the release serves with, and that the gate judges."""
    bits: Literal[4, 8, 32] = 8
    """Bits of a weight; 32 keeps float32."""
    group_size: int | None = Field(default=None, ge=8)
    """Inputs of a channel that share a scale; without it the whole channel does, and at 4 bits 32 inputs."""
    compensate: bool = True
    """Round inputs one after another, making up for each error, instead of each weight by itself."""
    items: ItemFormat = ItemFormat.INT8
    """Item vectors, of the engine's input and of the index."""
    cache: CacheFormat = CacheFormat.INT8
    """Keys and values of a session. float16 takes twice the memory and has about a tenth of the rounding error, which
    is less than that of 8-bit weights either way; cold users are encoded a little faster (`docs/benchmarks.md`). bf16
    takes as much as float16 and rounds eight times as much; what bf16 arithmetic computes it keeps unchanged. TensorRT
    plans have sessions in float16, and beside them bf16 is refused."""
    arithmetic: Arithmetic = Arithmetic.AUTO
    """Of the CPU engine; the gate judges by it."""
    new_items_share: float | None = Field(default=None, ge=0, le=1)
    """Of users whose first ten hold an item too new to be kept; without it, what training chose on validation."""
    num_calibration_windows: int = Field(default=256, ge=1)
    """Open windows of a seeded sample of users, at most of half of them: the gate judges by others."""
    num_comparison_windows: int = Field(default=200, ge=0)
    """Other windows, on which plain rounding, dynamic int8 and bf16 are measured beside AWQ; 0: not."""
    num_threads: int = Field(default=2, ge=1)
    num_check_users: int = Field(default=2000, ge=1)
    """Most users whose answers are compared with the reference at first (see `gate.most_users`)."""
    packed: bool = True
    """Graphs, item list and transition counts packed by gzip, without loss; off to look into them."""
    cuda: CudaConfig | None = None
    """Weights for the torch engine go into the release beside the CPU engine."""
    reference: bool = False
    """The float32 model goes into the release beside the CPU engine, as the engine `reference`: to compare others with
    without the checkpoint. Four times the size of 8-bit weights and items."""
    tensorrt: TensorRtConfig | None = None
    """TensorRT plans go into the release beside the CPU engine; needs the extra `tensorrt`."""
    tiered: TieredConfig = TieredConfig()
    """Engines of `engine = "tiered"`."""
    index: IndexConfig = IndexConfig()
    summaries: SummariesConfig = SummariesConfig()
    """Of recipes whose windows leave summaries."""
    gate: GateConfig = GateConfig()
    seed: int = 0

    @model_validator(mode="after")
    def _plans_keep_float16(self) -> Self:
        if self.cache is CacheFormat.BF16 and EngineName.TENSORRT in self.engines:
            raise ValueError(
                'cache = "bf16": TensorRT plans keep sessions in float16, which takes as much and rounds less; '
                'use "float16" or "int8" (of the CPU engine beside the plans)'
            )
        return self

    @property
    def engines(self) -> frozenset[EngineName]:
        """Engines that the release holds parts for; the CPU engine always."""
        named = {EngineName.CPU, self.engine} | self._answering
        if self.cuda is not None:
            named.add(EngineName.CUDA)
        if self.tensorrt is not None:
            named.add(EngineName.TENSORRT)
        if self.reference:
            named.add(EngineName.REFERENCE)
        return frozenset(named)

    @property
    def answers_on_cpu(self) -> bool:
        """Whether no part of the engine that serves computes on a GPU."""
        torch_device = (self.cuda or CudaConfig()).device
        on_cpu = {EngineName.CPU, EngineName.REFERENCE} | ({EngineName.CUDA} if torch_device == "cpu" else set())
        return self._answering <= on_cpu

    @property
    def _answering(self) -> set[EngineName]:
        """The engine that serves, or the tiers it is made of."""
        if self.engine is EngineName.TIERED:
            return {EngineName(self.tiered.short), EngineName(self.tiered.long)}
        return {self.engine}

    @property
    def weights(self) -> WeightFormat | None:
        """What matrices are rounded to; None keeps float32."""
        if self.bits == 32:
            return None
        return WeightFormat(bits=self.bits, group_size=self.group_size or (32 if self.bits == 4 else None))
