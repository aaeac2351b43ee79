"""What the nightly job refuses, and how a release that was forced is marked. Stages are stood in for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from features.config import FeaturesConfig
from optimize.config import OptimizeConfig
from recsys.contracts.errors import GateError
from recsys.pipeline import nightly
from recsys.training.config import Recipe


class Stages:
    """Tonight's stages: figures of the model and of popularity, and what the engine's gate says before the cut."""

    def __init__(self, ours: float, theirs: float, reasons: list[str]) -> None:
        baselines = {"popularity": {"ndcg@10": theirs}, "trending": {"ndcg@10": theirs / 2}}
        self.report = {"model": {"ndcg@10": ours}, "baselines": baselines}
        self.reasons = reasons
        self.published: dict[str, Any] = {}

    def road(self, *arguments: Any, force: bool = False, **_: Any) -> SimpleNamespace:
        if self.reasons and not force:
            raise GateError("release refused, nothing published: the engine")
        arguments[4].mkdir(parents=True)
        release = SimpleNamespace(metrics={"forced_past_gate": self.reasons})
        report = SimpleNamespace(to_json=lambda: self.report)
        checkpoint = SimpleNamespace(config={"form": "model"})
        return SimpleNamespace(checkpoint=checkpoint, report=report, release=release, seconds={})

    def publish(self, *_: Any, **options: Any) -> tuple[str, str]:
        self.published = options
        return "name", "manifest"


@pytest.fixture
def night(tmp_path: Path, monkeypatch):
    def run(stages: Stages, *, force: bool) -> tuple[Any, ...]:
        monkeypatch.setattr(nightly.road, "run", stages.road)
        monkeypatch.setattr(nightly.train, "run", lambda *_, **__: None)
        monkeypatch.setattr(nightly.optimize_build, "run", stages.publish)
        configs = FeaturesConfig(), Recipe(), OptimizeConfig()
        return nightly.run(*configs, ["log"], tmp_path, activate=False, start=False, force=force)

    return run


ENGINE, RANKING = ["relative error 0.2, at most 0.1 allowed"], "ndcg@10 0.1000, popularity reaches 0.2000"


@pytest.mark.parametrize(
    ("stages", "marks"),
    [
        (Stages(0.3, 0.2, []), []),
        (Stages(0.1, 0.2, []), [RANKING]),
        (Stages(0.3, 0.2, ENGINE), [f"before the cut: {ENGINE[0]}"]),
        (Stages(0.1, 0.2, ENGINE), [f"before the cut: {ENGINE[0]}", RANKING]),
        (Stages(float("nan"), 0.2, []), ["ndcg@10 nan, popularity reaches 0.2000"]),
    ],
)
def test_what_is_refused_is_published_with_force_and_every_reason(night, stages: Stages, marks: list[str]) -> None:
    assert night(stages, force=True)[:2] == ("name", "manifest")
    assert (stages.published["force"], stages.published["forced_past"]) == (True, marks)


@pytest.mark.parametrize("stages", [Stages(0.1, 0.2, []), Stages(0.2, 0.2, []), Stages(0.3, 0.2, ENGINE)])
def test_without_force_nothing_is_published(night, stages: Stages) -> None:
    with pytest.raises(GateError, match="nothing published"):
        night(stages, force=False)
    assert not stages.published


def test_a_model_has_to_rank_better_than_the_best_of_what_users_get_without_it() -> None:
    figures = {"model": {"ndcg@10": 0.2}, "baselines": {"popularity": {"ndcg@10": 0.1}, "trending": {"ndcg@10": 0.3}}}
    assert nightly._no_better(figures) == ["ndcg@10 0.2000, trending reaches 0.3000"]
