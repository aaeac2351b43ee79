from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.ids import PAD
from recsys.pipeline import choices_benchmark, rivals, rivals_tables
from recsys.pipeline.kept_runs import KeptRuns
from recsys.runtime.fusion import Fusion
from recsys.training import fusion
from recsys.windows import WindowConfig, reachable
from tests.conftest import NUM_ITEMS
from tests.pipeline.conftest import TYPES

WINDOW = WindowConfig(size=8)
VIEW, PURCHASE, RETURN = range(3)


def run(features: Path, names: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    usual = {"window_size": 8, "epochs": 0.2, "num_users": 30, "num_seeds": 1, "protocol": None, "out": None}
    return choices_benchmark.run(features, names=names, **(usual | settings))


def test_each_rival_has_figures_and_paired_differences(typed_features: Path) -> None:
    values = run(typed_features)
    assert list(values["rivals"]) == list(choices_benchmark.rivals(WINDOW, 1))
    assert values["left_out"] == {}
    assert (values["event_types"], values["wanted_types"]) == (TYPES, ["view", "purchase"])
    default = values["rivals"]["default"]
    assert default["differences"] is None
    for name, row in values["rivals"].items():
        for metric in rivals.METRICS:
            assert 0 <= row[metric] <= 1
            if name != "default":
                assert row["differences"][metric]["difference"] == pytest.approx(row[metric] - default[metric])
    assert "differences: to default" in rivals_tables.choices_table(values)


def test_types_that_are_not_wanted_are_read_and_not_predicted(typed_features: Path) -> None:
    of = rivals.sample(typed_features, 100)
    train = of.split.train
    assert train.event_types is not None
    assert set(train.event_types) == {VIEW, PURCHASE, RETURN}
    np.testing.assert_array_equal(train.targets != PAD, train.event_types != RETURN)
    for user_id, context, wanted in zip(train.user_ids, of.split.contexts, of.split.targets, strict=True):
        following = len(context) + np.arange(90)
        kept = following[(following % 3 != RETURN) & (following < min(90, 70 + int(user_id[1:])))]
        assert wanted.tolist() == [1 + (int(user_id[1:]) + i) % NUM_ITEMS for i in kept]


def test_a_sample_is_of_its_own_users_times_and_types(typed_features: Path) -> None:
    everyone, few = rivals.sample(typed_features, 100).split, rivals.sample(typed_features, 5).split
    assert len(few.train) == 5
    for user, user_id in enumerate(few.train.user_ids):
        there = everyone.train.user_ids.index(user_id)
        np.testing.assert_array_equal(few.train[user], everyone.train[there])
        assert few.train.timestamps_ms[few.train.offsets[user]] == 0
        assert few.train.event_types is not None
        assert few.train.event_types[few.train.offsets[user]] == VIEW


def test_inputs_that_a_log_lacks_are_left_out_and_refused_by_name(ring_features: Path) -> None:
    values = run(ring_features, ["gap"])
    assert set(values["left_out"]) == {"type", "type and gap"}
    assert list(values["rivals"]) == ["default", "gap"]
    with pytest.raises(DataError, match="--only type: all events are of one type, interaction"):
        run(ring_features, ["type"])


def test_an_unknown_name_is_refused(ring_features: Path) -> None:
    with pytest.raises(ConfigError, match="no rival of that name: x; expected some of default, type, gap"):
        run(ring_features, ["gap", "x"])


def test_finished_trainings_are_kept_and_those_of_other_settings_refused(
    ring_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(ring_features, ["gap"], out=tmp_path)
    monkeypatch.setattr(rivals, "train_and_rank", lambda *_: pytest.fail("trained again"))
    assert run(ring_features, ["gap"], out=tmp_path) == first
    with pytest.raises(DataError, match="a training with another epochs, or of an older version; give another --out"):
        run(ring_features, ["gap"], out=tmp_path, epochs=0.3)


def test_the_fused_figure_is_the_one_that_the_weights_were_chosen_by(
    ring_features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    bagged = rivals.fusion.bagged

    def seen(candidates: fusion.Candidates) -> Fusion:
        weights = bagged(candidates)
        found.append(candidates.ndcg(weights))
        return weights

    monkeypatch.setattr(rivals.fusion, "bagged", seen)
    of = rivals.sample(ring_features, 100)
    default = choices_benchmark.rivals(WINDOW, 1)["default"]
    row = rivals.compare(
        {"default": default}, of, WINDOW, epochs=1, num_seeds=1, reference="default", kept=KeptRuns(None, {})
    )
    assert len(of.split.contexts) >= 30  # with fewer, nothing is fused
    assert row["default"]["fused_ndcg@10"] == pytest.approx(found[0], abs=1e-6)


def test_rivals_start_from_the_same_weights(typed_features: Path) -> None:
    import torch

    weights = []
    for name in ("default", "type and gap", "gbce"):
        torch.manual_seed(0)
        model = choices_benchmark.rivals(WINDOW, 3)[name].build(rivals.MODEL, NUM_ITEMS)
        weights.append({key: value for key, value in model.state_dict().items() if not key.startswith("beside")})
    for others in weights[1:]:
        torch.testing.assert_close(others, weights[0])


def test_what_a_rival_reads_is_the_open_window_of_its_rows(typed_features: Path) -> None:
    of = rivals.sample(typed_features, 5)
    train = of.split.train
    rival = choices_benchmark.rivals(WINDOW, 3)["type and gap"]
    events = rival.events(train)
    assert events.shape == (len(train.tokens), 3)
    read = rival.context(events[: train.offsets[1]])
    np.testing.assert_array_equal(read, events[train.offsets[1] - len(read) : train.offsets[1]])
    assert len(read) <= WINDOW.size < len(reachable(train[0], WINDOW))
    assert read[0, 2] == 2 + 1  # a second after its predecessor, though it is the window's first event
