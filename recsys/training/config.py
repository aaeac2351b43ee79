"""Training's settings, and the recipe: one TOML file that sets model, window and training."""

from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from recsys.contracts.config import Config, read_toml
from recsys.contracts.errors import ConfigError
from recsys.model.config import ModelConfig
from recsys.windows import WindowConfig


class TrainingConfig(Config):
    """How the model is fitted."""

    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=100, ge=1)
    batch_tokens: int = Field(default=4096, ge=64)
    """Padded events in a batch."""
    max_epochs: int = Field(default=100, ge=1)
    patience: int = Field(default=5, ge=1)
    """Epochs without a better validation NDCG@10 before training stops."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Stop at the end of the epoch that passes this; the best weights so far are kept."""
    num_validation_users: int = Field(default=1000, ge=1)
    gradient_clip: float = Field(default=1.0, gt=0)
    num_threads: int = Field(default=2, ge=1)
    seed: int = 0


class Recipe(Config):
    """Everything that decides what is trained."""

    model: ModelConfig = ModelConfig()
    window: WindowConfig = WindowConfig()
    training: TrainingConfig = TrainingConfig()

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


def bundled_recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("recsys.training") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))
