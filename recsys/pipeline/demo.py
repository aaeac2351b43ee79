"""The whole road on a small shop, then a table."""

from pathlib import Path

from features import simulate
from features.build import FeaturesConfig
from optimize.config import OptimizeConfig
from recsys.contracts.protocol import Protocol
from recsys.pipeline import road
from recsys.pipeline.road import RoadResult
from recsys.training.config import Recipe

SAMPLE = Path("data") / "sample" / "events.csv.gz"
"""The bundled sample, in a checkout. Elsewhere the same log is simulated."""


def run(out: Path, recipe: str = "demo") -> RoadResult:
    """Features, training, an 8-bit engine and its evaluation under `out`; the release serves."""
    out.mkdir(parents=True, exist_ok=True)
    log = sample_log(out)
    return road.run(FeaturesConfig(), Recipe.load(recipe), OptimizeConfig(), [log], out, Protocol.TIME)


def sample_log(folder: Path) -> Path:
    """The bundled sample, or where it is not, the same log simulated into `folder`."""
    log = Path(__file__).parents[2] / SAMPLE
    return log if log.exists() else simulate.run(simulate.SimulateConfig(), folder / "events.csv.gz")
