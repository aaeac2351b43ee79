"""Training's settings, and the recipe: one TOML file that sets model, window and training."""

from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from recsys.contracts.config import Config, read_toml
from recsys.contracts.errors import ConfigError
from recsys.dataset import Dataset
from recsys.model.config import ModelConfig
from recsys.model.content import DEFAULT_RIDGE
from recsys.windows import WindowConfig

DENSE, SPARSE, LONG = "model", "sparse.model", "long.window"
"""Names of a recipe's tables that its forms are made of."""
AND = " + "
METHOD = 3
"""Raised when a training of the same settings comes to mean something else, so that what is kept of older ones is not
mixed with newer ones; 2: trend, weights from halves; 3: validation prunes by what was before it."""


class Precision(StrEnum):
    """What matrix products are computed in. Weights, optimizer, average and loss are float32 in all of them."""

    FP32 = "fp32"
    BF16 = "bf16"
    """Half the bits, the range of float32."""
    FP16 = "fp16"
    """More digits than bf16 and a small range: the loss is scaled up so that small gradients do not vanish."""


class Device(StrEnum):
    """What a model is trained on."""

    AUTO = "auto"
    """An NVIDIA GPU where torch finds one, else the processor."""
    CPU = "cpu"
    CUDA = "cuda"


class TrainingConfig(Config):
    """How the model is fitted."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW; constant after the warm-up, falling to 0 while held-out events are absorbed."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW, on all weights."""
    warmup_steps: int = Field(default=100, ge=1)
    """Steps over which the learning rate rises to its value."""
    num_negatives: int = Field(default=512, ge=0)
    """Sampled items that each target is held against; 0, or a smaller catalogue: all items."""
    summary_loss: float = Field(default=0.3, ge=0)
    """With summaries: weight of a second loss, by which they learn to tell their windows' items, rare ones first."""
    spectral_start: bool = True
    """Start item vectors from a factorisation of the transition counts, not from random numbers."""
    batch_tokens: int | None = Field(default=None, ge=64)
    """Padded events in a batch; without it, so many that an epoch has about 200 batches, within 512 … 4,096."""
    max_epochs: int = Field(default=100, ge=1)
    """Training stops after so many, absorbing not counted."""
    max_round_steps: int = Field(default=1000, ge=1)
    """Validation comes after each epoch, or after so many batches of a longer one: a round."""
    patience: int = Field(default=5, ge=1)
    """Rounds without a better validation NDCG@10 before training stops."""
    start_patience: int = Field(default=2, ge=1)
    """The same for a run that starts from an older checkpoint."""
    trend: bool = True
    """Whether what is taken these days may shift scores, by a weight that validation finds. Lists get more alike by it
    (coverage, Gini), and false keeps them apart."""
    new_items_ridge: float = Field(default=DEFAULT_RIDGE, gt=0)
    """Penalty of the regression that places new items by what the catalogue says of them."""
    new_items_max_loss: float = Field(default=0.0, ge=0, lt=1)
    """Share of validation NDCG@10 that may be paid for showing new items; 0: they must pay for themselves."""
    absorb_share: float = Field(default=0.25, ge=0)
    """Then the held-out events are trained on too, for this share of the steps, the learning rate falling to 0."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Stop after this long, absorbing included; the best weights so far are kept."""
    num_validation_users: int = Field(default=4000, ge=1)
    """Most users that a round is judged by, a seeded sample."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Greatest norm of a step's gradients; longer ones are scaled down."""
    precision: Precision = Precision.FP32
    """bf16 and fp16 pay off on processors that multiply in them; elsewhere they are slower."""
    device: Device = Device.AUTO
    """auto: an NVIDIA GPU where torch finds one, else the processor; cpu; cuda."""
    tensorboard: bool | None = None
    """Write events for TensorBoard. Without it: if tensorboardX is installed."""
    num_threads: int | None = Field(default=None, ge=1)
    """Without it, all cores or one, whichever the first steps show to be faster: where other work keeps a core
    busy, a second thread slows training down several times."""
    seed: int = 0
    """The same seed and number of threads give the same weights, unless minutes end the run."""


class SparseConfig(Config):
    """The model of logs that say little of each item."""

    below: float = Field(gt=0)
    """Events on a kept item, on average, under which a log is one of these."""
    model: ModelConfig
    """What is trained there; the same keys as `[model]`, whose values are not taken over."""


class LongConfig(Config):
    """The windows of logs whose users have more events than one window holds."""

    from_share: float = Field(gt=0, le=1)
    """Share of users with more events than `[window]` holds, from which on a log is one of these."""
    window: WindowConfig
    """What histories are cut into there; the same keys as `[window]`, whose values are not taken over."""


class Recipe(Config):
    """Everything that decides what is trained."""

    model: ModelConfig = ModelConfig()
    window: WindowConfig = WindowConfig()
    training: TrainingConfig = TrainingConfig()
    sparse: SparseConfig | None = None
    """Without it, `model` is for every log."""
    long: LongConfig | None = None
    """Without it, `window` is for every log."""

    def form_for(self, data: Dataset) -> str:
        """The tables that a log's model and windows stand in, such as `sparse.model + long.window`."""
        is_sparse = self.sparse is not None and data.events_per_item < self.sparse.below
        is_long = self.long is not None and data.share_with_more_than(self.window.size) >= self.long.from_share
        return _named(is_sparse, is_long)

    def form_like(self, form: str) -> str:
        """Of another form's tables those that this recipe has."""
        tables = form.split(AND)
        return _named(self.sparse is not None and SPARSE in tables, self.long is not None and LONG in tables)

    def settled(self, form: str) -> "Recipe":
        """With that form's model and windows as its only ones."""
        tables = form.split(AND)
        model = self.sparse.model if self.sparse is not None and SPARSE in tables else self.model
        window = self.long.window if self.long is not None and LONG in tables else self.window
        return self.model_copy(update={"model": model, "window": window, "sparse": None, "long": None})

    def for_log(self, data: Dataset) -> "Recipe":
        """Settled for such a log."""
        return self.settled(self.form_for(data))

    def with_windows_of(self, size: int) -> "Recipe":
        """With so many events in a window, in each of its forms.

        Raises:
            ConfigError: windows of that size cannot be cut, or leave summaries.
        """
        values = self.model_dump()
        for table in (values, values["long"] or {}):
            if "window" in table:
                table["window"]["size"] = size
        return self.from_mapping(values, f"windows of {size}")

    @classmethod
    def load(cls, name_or_path: str) -> "Recipe":
        """A bundled recipe by name, or a TOML file by path.

        Raises:
            ConfigError: neither, or an unknown key or bad value in it.
        """
        bundled = resources.files("recsys.training") / "recipes" / f"{name_or_path}.toml"
        if name_or_path in bundled_recipes():
            values: dict[str, Any] = read_toml(Path(str(bundled)))
        elif Path(name_or_path).suffix == ".toml":
            values = read_toml(Path(name_or_path))
        else:
            known = ", ".join(bundled_recipes())
            raise ConfigError(f"recipe {name_or_path!r}: expected one of {known}, or a path that ends in .toml")
        return cls.from_mapping(values, name_or_path)


def _named(is_sparse: bool, is_long: bool) -> str:
    return AND.join([SPARSE if is_sparse else DENSE, *([LONG] if is_long else [])])


def bundled_recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("recsys.training") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))
