import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.contracts.protocol import Protocol
from recsys.evaluation.comparison import Verdict, compare
from recsys.evaluation.figures import COLORS
from recsys.evaluation.protocols import MODEL, RankerResult, Report
from recsys.evaluation.report_page import page
from recsys.evaluation.segments import Segment
from recsys.evaluation.statistics import paired_difference
from recsys.evaluation.summary import Evaluation, Origin, interval
from tests.conftest import service_program

NAMES = [f"{name}@{k}" for k in (10, 100) for name in ("ndcg", "recall", "hit_rate", "map")] + ["mrr"]


def result(generator: np.random.Generator, lift: float = 0.0) -> RankerResult:
    values = {name: np.clip(generator.random(60) * 0.5 + lift, 0, 1) for name in NAMES}
    return RankerResult(
        headline=values, next=values, coverage={"coverage@10": 0.5}, ranked=np.ones((60, 1), dtype=np.int32)
    )


def evaluation(
    against: str | None = "popularity", release: str = "r1", num_looks: int = 3, metric: str = "ndcg@10"
) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    results = {MODEL: result(generator, 0.2), "popularity": result(generator)}
    report = Report(
        protocol=Protocol.TIME, num_items=9, user_ids=["u"] * 60, rows=list(range(60)), num_cold_users=4,
        num_targets=100, num_targets_outside_vocabulary=7, num_targets_seen=8, results=results,
    )  # fmt: skip
    values = {name: {"ndcg@10": 0.3, "recall@10": 0.2, "map@10": 0.1234, "novelty@10": 7.75} for name in results}
    a, b = (found.headline for found in results.values())
    gap = None if against is None else paired_difference(np.array([0.5, 0.25]), np.array([0.25, 0.25]), seed=0)
    comparison = None if against is None else compare(a, b, against, metrics=NAMES[:4])
    return Evaluation(
        origin=Origin(
            evaluated_at="2026-01-02T03:04:05+00:00", release=release, release_digest="a" * 64,
            features_digest="b" * 64, test_set="c" * 64, num_looks=num_looks, split_ms=1_700_000_000_000,
        ),
        report=report,
        metric=metric,
        lists={name: {"gini@10": 0.5, "novelty@10": 9.5, "diversity@10": float("nan")} for name in results},
        segments=[
            Segment(by="history length", name="<= 20", num_users=40, num_targets=70, values=values, difference=gap),
            Segment(by="history length", name="> 20", num_users=20, num_targets=30, values=values, difference=gap),
            Segment(by="item", name="never seen", num_users=0, num_targets=0, values={n: {} for n in results}),
        ],
        comparison=comparison,
    ).to_json()  # fmt: skip


def test_the_page_holds_verdict_figures_tables_and_the_number_of_looks() -> None:
    text = page(evaluation())
    assert text.count("<img src=") == 3  # accuracy, differences, history length; a single segment needs no picture
    assert all(word in text for word in ('class="verdict better"', "3 times", "never seen", "ndcg@10 (primary)"))
    assert "7 targets (7.0%)" in text
    assert "4 users without a kept event" in text


def test_segments_are_shown_by_the_primary_metric_with_their_difference_and_every_metric() -> None:
    text = page(evaluation(metric="map@10"))
    assert 'alt="map@10 by history length"' in text
    row = "<tr><td>&lt;= 20</td><td>40</td><td>70</td><td>0.1234</td><td>0.1234</td>"
    assert f"{row}<td>+0.1250</td><td>+0.0000 … +0.2500</td></tr>" in text  # 0 and 1/4 of two users
    assert "<tr><td>never seen</td><td>0</td><td>0</td>" + 4 * "<td>–</td>" + "</tr>" in text
    head, ours = "<th>model, every metric</th>", "<td>0.2000</td><td>0.3000</td><td>0.1234</td><td>7.7500</td>"
    assert f"{head}<th>recall@10</th><th>ndcg@10</th><th>map@10</th><th>novelty@10</th>" in text
    assert ours in text
    assert "95 % interval" not in page(evaluation(against=None, metric="map@10")).split("<h2>Segments</h2>")[1]


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs() -> None:
    text = page(evaluation())
    assert re.findall(r"(?:src|href)=\"(?!data:image/svg\+xml;base64,)", text) == []
    assert not re.search(r"<script|<link|@import|url\(|javascript:", text)


def test_names_are_escaped() -> None:
    text = page(evaluation(against="<i>last</i>", release="<b>&"))
    assert "<i>last" not in text
    assert "&lt;b&gt;&amp;" in text


def test_without_a_comparison_there_is_no_verdict() -> None:
    text = page(evaluation(against=None, num_looks=1))
    assert 'class="verdict' not in text
    assert text.count("<img src=") == 2
    assert "<b>once</b>" in text


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_is_explained(verdict: Verdict) -> None:
    values = evaluation()
    values["comparison"]["verdict"] = verdict.value
    assert f"<b>{verdict}</b>" in page(values)


def test_what_is_undefined_is_a_dash_not_nan() -> None:
    values = evaluation()
    assert values["model"]["diversity@10"] is None
    for row in [values["comparison"]["primary"], *values["comparison"]["exploratory"]]:
        row |= dict.fromkeys(("relative", "relative_low", "relative_high", "p_value"))
    values["comparison"]["resolution"] = None
    text = page(values)
    assert "–" in text
    assert not re.search(r"\bnan\b|None", text)


def test_interval_by_hand() -> None:
    # mean 1/2, standard deviation 1/√3 with n − 1 = 3, so ± 1.96 · .57735 / 2 = .56579
    assert interval(np.array([0.0, 1.0, 0.0, 1.0])) == pytest.approx([0.5 - 0.56579, 0.5 + 0.56579], abs=1e-5)
    assert interval(np.ones(1)) is None


@pytest.mark.service
def test_a_browser_draws_the_figures(tmp_path: Path) -> None:
    chromium = str(service_program("chromium", "chromium"))
    (tmp_path / "page.html").write_text(page(evaluation()), encoding="utf-8")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}",
        "--window-size=1060,1800", (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    blue = np.array([int(COLORS[MODEL][i : i + 2], 16) for i in (1, 3, 5)])
    is_blue = (np.abs(picture - blue) < 12).all(axis=2)
    rows = np.flatnonzero(is_blue.any(axis=1))
    figures = 1 + (np.diff(rows) > 60).sum()  # bar, primary difference, dots: far apart on the page
    assert is_blue.sum() > 5_000  # the model's bar alone is about 400 x 20 pixels
    assert figures >= 3
