"""`recsys evaluate` as a user types it: report, comparison, page, and the log of looks."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from optimize import build
from optimize.config import OptimizeConfig
from recsys.contracts import artifact
from recsys.contracts.errors import ConfigError
from recsys.contracts.protocol import Protocol
from recsys.evaluation import looks
from recsys.pipeline import evaluation
from recsys.training import train
from recsys.training.config import Recipe
from tests.conftest import NUM_ITEMS, cyclic_histories, write_features
from tests.pipeline.test_command_line import recsys, refused, refused_here


@pytest.fixture
def releases(ring_releases: Path, tmp_path: Path) -> Path:
    """A folder of releases of its own, with no evaluation yet."""
    return Path(shutil.copytree(ring_releases, tmp_path / "releases", ignore=lambda *_: [looks.LOG_FILE]))


def evaluate(releases: Path, features: Path, *options: object) -> dict:
    return json.loads(recsys("evaluate", releases, "--features", features, "--json", *options).stdout)


def test_the_report_has_every_metric_segment_and_where_it_comes_from(releases: Path, ring_features: Path) -> None:
    report = evaluate(releases, ring_features)
    assert set(report["baselines"]) == {"popularity", "trending", "last_item", "cooccurrence"}
    measured = {f"{name}@10" for name in ("recall", "ndcg", "hit_rate", "map", "coverage", "novelty", "gini")}
    for ranker in (report["model"], *report["baselines"].values()):
        assert measured | {"mrr", "diversity@10", "repeat_share@10", "next"} <= set(ranker)
    assert {row["by"] for row in report["segments"]} >= {"history length", "item popularity", "item", "user"}
    lengths = [row for row in report["segments"] if row["by"] == "history length" and row["num_users"]]
    for values in (values for row in lengths for values in row["values"].values()):
        assert set(values) == measured | {"mrr", "diversity@10", "repeat_share@10"}
    assert report["comparison"] is None
    assert report["release_digest"] == artifact.read_manifest(artifact.resolve_release(releases)).digest
    low, high = report["intervals"]["model"]
    assert low < report["model"]["ndcg@10"] < high


def test_a_release_against_itself_is_inconclusive_for_nobody_differs(releases: Path, ring_features: Path) -> None:
    report = evaluate(releases, ring_features, "--against", releases, "--metric", "recall@20", "--margin", 0.01)
    comparison = report["comparison"]
    assert all(row["difference"]["high"] == 0 for row in report["segments"] if row["num_users"])
    assert all("recall@20" in row["values"]["model"] for row in report["segments"] if row["num_users"])
    assert comparison["verdict"] == "inconclusive"
    assert comparison["primary"]["num_different"] == 0
    assert comparison["against"] == report["release"]
    assert comparison["primary"]["metric"] == "recall@20"
    assert (comparison["primary"]["difference"], comparison["primary"]["p_value"]) == (0, 1)
    assert [row["metric"] for row in comparison["exploratory"]] == [
        "ndcg@10", "recall@10", "hit_rate@10", "map@10", "mrr",
    ]  # fmt: skip
    assert {name: value for name, value in report["against"].items() if name != "next"} == {
        name: value for name, value in report["model"].items() if name != "next"
    }


def test_a_baseline_to_compare_with_and_a_page(releases: Path, ring_features: Path, tmp_path: Path) -> None:
    place = tmp_path / "new" / "report.html"
    result = recsys(
        "evaluate", releases, "--features", ring_features, "--against", "popularity", "--report", place
    )  # fmt: skip
    assert "against popularity: better by ndcg@10, margin 0.30%" in result.stdout
    for metric in ("recall", "hit_rate", "ndcg", "map", "coverage", "gini", "novelty", "diversity", "repeat_share"):
        assert f" {metric}@10 " in result.stdout, metric
    shown = [line for line in result.stdout.splitlines() if line.startswith("| history length: <= 20 ")]
    assert re.fullmatch(r"\| .* \| +92 \| +0\.\d{4} \| \+0\.\d{4} \[\+0\.\d{4}, \+0\.\d{4}\] \|", *shown)
    assert max(len(line) for line in result.stdout.splitlines() if line.startswith("|")) <= 110
    page = place.read_text()
    assert page.count("<img src=") >= 3
    assert "popularity" in page


def test_a_page_that_cannot_be_written_costs_no_look(releases: Path, ring_features: Path, tmp_path: Path) -> None:
    for no_file in (releases, Path("/dev/null")):
        assert f"--report {no_file}: no file, expected the name of an .html file" in refused(
            "evaluate", releases, "--features", ring_features, "--report", no_file
        )
    (tmp_path / "file").touch()
    under_a_file = tmp_path / "file" / "report.html"
    assert f"--report {under_a_file}: cannot be written" in refused(
        "evaluate", releases, "--features", ring_features, "--report", under_a_file
    )
    assert not (releases / looks.LOG_FILE).exists()


def test_a_page_that_nothing_can_draw_is_refused_before_the_look(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="the report page needs matplotlib; install"):
        evaluation.check_page(tmp_path / "report.html")


def test_every_look_at_the_test_set_is_logged_and_counted(releases: Path, ring_features: Path) -> None:
    assert evaluate(releases, ring_features)["num_looks"] == 1
    second = recsys("evaluate", releases, "--features", ring_features, "--against", "last_item")
    assert second.stdout.rstrip().endswith("evaluations of this test set in the log: 2")
    rows = [json.loads(line) for line in (releases / "evaluations.jsonl").read_text().splitlines()]
    assert [row["against"] for row in rows] == [None, "last_item"]
    assert rows[0]["metric"] == "ndcg@10"
    assert rows[0]["test_set"] == rows[1]["test_set"]
    assert rows[0]["features"] == artifact.read_manifest(ring_features).digest


@pytest.fixture(scope="module")
def older_releases(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Releases of other features, by their cut: of a shorter log, and of one cut later than the ring."""
    places = {}
    for split_ms in (6, 12):
        folder = tmp_path_factory.mktemp("older")
        histories = {user: history[: 2 * split_ms] for user, history in cyclic_histories().items()}
        write_features(folder / "features", histories, NUM_ITEMS, split_ms=split_ms)
        train.run(tiny_recipe, folder / "features", folder / "checkpoint", protocol=Protocol.TIME)
        build.run(OptimizeConfig(bits=32), folder / "checkpoint", folder / "features", folder / "releases", force=True)
        places[split_ms] = folder / "releases"
    return places


def test_tonights_release_is_compared_with_last_nights_of_older_features(
    releases: Path, ring_features: Path, older_releases: dict[int, Path]
) -> None:
    report = evaluate(releases, ring_features, "--against", older_releases[6])
    assert report["comparison"]["against"] == artifact.resolve_release(older_releases[6]).name
    assert report["comparison"]["verdict"] == "better"  # 12 epochs on the ring against one
    assert 0 < report["against"]["ndcg@10"] < report["model"]["ndcg@10"]


def test_a_release_fitted_after_the_cut_of_these_features_is_refused(
    releases: Path, ring_features: Path, older_releases: dict[int, Path]
) -> None:
    message = refused("evaluate", releases, "--features", ring_features, "--against", older_releases[12])
    assert "fitted before 12 ms, expected before 10 ms or earlier, or comparing would leak" in message


def test_mistakes_are_one_line_and_no_look(releases: Path, ring_features: Path, tmp_path: Path) -> None:
    base = ("evaluate", releases, "--features", ring_features)
    assert "metric 'ndcg', expected one of ndcg@10, recall@10" in refused(*base, "--metric", "ndcg")
    assert "expected a release or one of popularity, trending, last_item, cooccurrence" in refused_here(
        *base, "--against", "populr"
    )
    assert "no release here" in refused_here(*base, "--against", tmp_path)
    assert "0.5" in refused_here(*base, "--margin", 30)
    assert not (releases / "evaluations.jsonl").exists()
    (releases / "evaluations.jsonl").write_text("not json\n")
    assert "evaluations.jsonl, line 1" in refused_here(*base)
