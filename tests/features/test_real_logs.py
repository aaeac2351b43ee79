"""The public logs, where they are at hand: counts against those their publishers and plain tools give."""

from pathlib import Path
from typing import Any

import pytest

from features.build import FeaturesConfig, run

REAL_DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not REAL_DATA.exists(), reason="the public logs are not beside the checkout")


def metrics_of(place: Path, format_name: str, source: str) -> dict[str, Any]:
    metrics = run(FeaturesConfig(format=format_name), [REAL_DATA / source], place / "out").metrics
    left_out, bad = sum(metrics["excluded"].values()), sum(metrics["quarantined"].values())
    assert metrics["num_rows_read"] == metrics["num_events"] + left_out + bad
    return metrics


def test_online_retail(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, "online-retail", "online_retail")
    assert metrics["num_rows_read"] == 541_909
    assert metrics["excluded"]["guest"] == 135_080
    assert metrics["quarantined"] == {}
    # 4,339 customers and 3,665 items after cancellations, less those that are nothing but postage and fees.
    assert (metrics["num_users"], metrics["num_items"]) == (4_335, 3_659)


def test_taobao_loses_its_cut_off_last_line_only(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, "taobao", "taobao_userbehavior")
    assert metrics["quarantined"] == {"4 fields, expected 5": 1}
    assert (metrics["num_events"], metrics["num_users"]) == (84_475, 815)


def test_rees46_loses_its_last_line_cut_off_within_the_user_id(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, "rees46", "rees46")
    assert (metrics["num_events"], metrics["quarantined"]) == (17_434, {"8 fields, expected 9": 1})
    assert metrics["event_types"] == ["view", "purchase", "cart"]
