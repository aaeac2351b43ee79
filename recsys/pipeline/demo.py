"""The whole road on a small shop, then a table."""

from pathlib import Path

from features import simulate
from features.build import FeaturesConfig
from optimize.config import OptimizeConfig
from recsys.dataset import Protocol
from recsys.pipeline import road
from recsys.pipeline.road import RoadResult
from recsys.training.config import Recipe

SAMPLE = Path("data") / "sample" / "events.csv.gz"
"""The bundled sample, in a checkout. Elsewhere the same log is simulated."""


def run(out: Path, recipe: str = "demo") -> RoadResult:
    """Features, training, an 8-bit engine and its evaluation under `out`; the release serves."""
    out.mkdir(parents=True, exist_ok=True)
    checkout = Path(__file__).parents[2]
    log = checkout / SAMPLE
    if not log.exists():
        log = simulate.run(simulate.SimulateConfig(), out / "events.csv.gz")
    return road.run(FeaturesConfig(), Recipe.load(recipe), OptimizeConfig(), [log], out, Protocol.TIME)
