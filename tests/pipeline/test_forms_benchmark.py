import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from recsys.cli import app
from recsys.contracts.errors import DataError
from recsys.model.binary_loss import BinaryLoss
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.event_inputs import MOST_GAP, EventInputsModel
from recsys.model.rival_blocks import FIRST_SCALE, CosineModel, GatedModel, HstuModel
from recsys.pipeline import choices_benchmark, forms_benchmark, rivals, rivals_tables
from recsys.pipeline.forms import BLOCKS, INPUTS, OUTPUTS, SCHEDULES, Forms, combined
from recsys.pipeline.forms_benchmark import Space, rival
from recsys.training import study
from recsys.training.loop import DivergedError, Trainer
from recsys.windows import WindowConfig

WINDOW = WindowConfig(size=8)
SMALL = ModelConfig(width=16, num_layers=1, num_heads=2, head_dim=8, feedforward_width=16, dropout=0.0, init_std=0.2)
SPACE = Space(INPUTS, 0.5)
FORMS = Forms(WINDOW, 3)
OTHER = {
    **SPACE.default, "loss": "gbce", "gbce_negatives": 64, "gbce_calibration": 0.5, "output": "cosine",
    "blocks": "hstu", "inputs": "type and gap", "dropout": 0.5, "weight_decay": 0.3, "is_averaged": False,
    "learning_rate": 0.005, "schedule": "constant", "epochs": 1.0,
}  # fmt: skip


def run(features: Path, out: Path, trials: int, **settings: Any) -> dict[str, Any]:
    usual = {"minutes": None, "window_size": 8, "epochs": 0.2, "num_users": 30, "num_seeds": 1, "protocol": None}
    return forms_benchmark.run(features, out, num_trials=trials, **(usual | settings))


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> list[tuple[rivals.Rival, list[str], int]]:
    """No training: a form of the default's dropout is worth .1 to each user, others .2. Notes what was trained."""
    seen: list[tuple[rivals.Rival, list[str], int]] = []

    def fake(rival: rivals.Rival, _: WindowConfig, of: rivals.Sample, __: float, seed: int) -> dict[str, Any]:
        seen.append((rival, of.split.user_ids, seed))
        by_user = np.full(len(of.split.contexts), 0.1 if rival.dropout == rivals.MODEL.dropout else 0.2)
        return dict.fromkeys(rivals.METRICS, by_user) | {"loss": 1.0, "steps": 1, "training_s": 0.1}

    for module in (forms_benchmark, rivals):
        monkeypatch.setattr(module, "train_and_rank", fake)
    return seen


def rows(length: int, highest: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    columns = [torch.randint(1, 1 + n, (1, length), generator=generator) for n in highest]
    return torch.stack(columns, dim=2) if len(columns) > 1 else columns[0]


@pytest.mark.parametrize(("output", "blocks", "inputs"), itertools.product(OUTPUTS, BLOCKS, INPUTS))
def test_parts_stack_and_no_later_event_changes_an_earlier_state(output: str, blocks: str, inputs: str) -> None:
    torch.manual_seed(0)
    model = FORMS.of(output=output, blocks=blocks, inputs=inputs).build(SMALL, 20).eval()
    parts = {CosineModel: output == "cosine", GatedModel: blocks == "gated", HstuModel: blocks == "hstu"}
    assert {part: isinstance(model, part) for part in parts} == parts
    highest = {"none": (20,), "type": (20, 3), "gap": (20, MOST_GAP), "type and gap": (20, 3, MOST_GAP)}[inputs]
    if isinstance(model, EventInputsModel):
        assert tuple(table.num_embeddings - 1 for table in model.beside) == highest[1:]
        for table in model.beside:
            torch.nn.init.normal_(table.weight[1:].detach())
    events = rows(8, highest)
    changed = events.clone()
    changed[0, 5:] = changed[0, 5:] % 3 + 1
    with torch.inference_mode():
        before, after = model(events), model(changed)
        scores = before @ model.items_VD.T
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5], after[:, 5])
    if output == "cosine":
        torch.testing.assert_close(before.norm(dim=2), torch.full((1, 8), FIRST_SCALE))
        assert scores.abs().max() <= FIRST_SCALE * 1.0001


@pytest.mark.parametrize("part", [SequenceModel, CosineModel, GatedModel, HstuModel, EventInputsModel])
def test_one_part_alone_is_that_part(part: type[SequenceModel]) -> None:
    further = ([3, MOST_GAP],) if part is EventInputsModel else ()
    models = []
    for kind in (part, combined(*(() if part is SequenceModel else (part,)))):
        torch.manual_seed(0)
        models.append(kind(SMALL, 20, 8, *further).eval())
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict())
    events = rows(8, (20, 3, MOST_GAP) if further else (20,))
    with torch.inference_mode():
        torch.testing.assert_close(models[0](events), models[1](events))


def test_schedules_begin_at_the_full_rate_and_fall_as_they_are_named() -> None:
    halfway = {name: (rate(0.0), rate(0.5), rate(1.0)) for name, rate in SCHEDULES.items()}
    expected = {"parabola": (1, 0.75, 0), "constant": (1, 1, 1), "linear": (1, 0.5, 0), "cosine": (1, 0.5, 0)}
    assert halfway == {name: pytest.approx(values) for name, values in expected.items()}
    assert SCHEDULES["cosine"](0.25) == pytest.approx((1 + 2**-0.5) / 2)


def test_every_setting_of_a_point_reaches_training(typed_features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    class Seen(Trainer):
        def __init__(self, model: SequenceModel, recipe: Any, *given: Any, loss: Any, **further: Any) -> None:
            super().__init__(model, recipe, *given, loss=loss, **further)
            training = recipe.training
            seen.append({
                "dropout": model.config.dropout, "rate": training.learning_rate, "decay": training.weight_decay,
                "negatives": self.num_negatives, "loss": loss, "model": model, "trainer": self,
            })  # fmt: skip

        def train(self, stream: Any, num_steps: int, **further: Any) -> Any:
            seen[-1] |= {"epochs": num_steps / stream.epoch_steps, "late": further["rate"](0.9)}
            stretch = super().train(stream, num_steps, **further)
            weights = [weight.clone() for weight in self._weights]
            seen[-1]["averaged"] = not all(map(torch.equal, weights, self.averaged))
            return stretch

    monkeypatch.setattr(rivals, "Trainer", Seen)
    of = rivals.sample(typed_features, 30)
    for point in (SPACE.default, OTHER, {**SPACE.default, "loss": "full softmax"}):
        rivals.train_and_rank(rival(FORMS, point), WINDOW, of, 7.0, 0)
    default, other, full = seen
    assert (default["dropout"], default["rate"], default["decay"]) == (rivals.MODEL.dropout, rivals.LEARNING_RATE, 0.01)
    assert (default["loss"], default["averaged"], default["late"]) == (None, True, pytest.approx(0.19))
    assert default["epochs"] == pytest.approx(0.5, abs=0.1)
    assert (other["dropout"], other["rate"], other["decay"]) == (0.5, 0.005, 0.3)
    assert other["loss"] == BinaryLoss(num_negatives=64, calibration=0.5, is_shared=True)
    assert (other["averaged"], other["late"], other["epochs"]) == (False, 1.0, pytest.approx(1.0))
    assert all(isinstance(other["model"], part) for part in (EventInputsModel, CosineModel, HstuModel))
    assert full["negatives"] == 0
    assert full["loss"] is None


def test_the_first_trial_is_what_choices_trains_as_the_default(typed_features: Path, tmp_path: Path) -> None:
    values = run(typed_features, tmp_path, 1)
    trial = values["trials"][0]
    assert {name: trial[name] for name in SPACE.default} == {**SPACE.default, "epochs": 0.2}
    choices = choices_benchmark.run(
        typed_features, window_size=8, epochs=0.2, num_users=30, num_seeds=1, protocol=None, names=["gap"], out=None
    )
    assert trial["fused_ndcg@10"] == pytest.approx(choices["rivals"]["default"]["fused_ndcg@10"])
    assert trial["ndcg@10"] == pytest.approx(choices["rivals"]["default"]["ndcg@10"])
    assert values["comparison"] is None
    assert "the default's form is the best trial" in rivals_tables.forms_table(values)


def test_a_study_goes_on_and_is_bound_to_its_settings(typed_features: Path, tmp_path: Path, worth: list[Any]) -> None:
    first = run(typed_features, tmp_path, 2)
    assert len(worth) == 2 + 2  # and the comparison's two
    again = run(typed_features, tmp_path, 3)
    assert sorted(row["trial"] for row in again["trials"]) == [0, 1, 2]
    assert [row for row in again["trials"] if row["trial"] < 2] == first["trials"]
    assert len(worth) == 4 + 1  # the same trial is best, and its comparison is kept
    with pytest.raises(DataError, match="a study of another epochs"):
        run(typed_features, tmp_path, 4, epochs=0.4)


def test_another_study_in_the_same_folder_is_not_held_to_be_this_one(
    typed_features: Path, tmp_path: Path, worth: list[Any]
) -> None:
    run(typed_features, tmp_path, 2)
    (tmp_path / study.STUDY_FILE).unlink()
    with pytest.raises(DataError, match="a training with another study, or of an older version; give another --out"):
        run(typed_features, tmp_path, 2)


@pytest.mark.parametrize(("num_users", "on_others"), [(10, True), (200, False)])
def test_the_best_form_is_compared_with_other_seeds_and_where_there_are_any_other_users(
    ring_features: Path, tmp_path: Path, worth: list[Any], num_users: int, on_others: bool
) -> None:
    values = run(ring_features, tmp_path, 2, num_users=num_users, num_seeds=2)
    searched, compared = worth[:2], worth[2:]
    assert [seed for _, _, seed in searched] == [0, 0]
    assert [seed for _, _, seed in compared] == [1, 2, 1, 2]
    assert all(user_ids == searched[0][1] for _, user_ids, _ in searched)
    common = [set(user_ids) & set(searched[0][1]) for _, user_ids, _ in compared]
    assert all(len(users) == (0 if on_others else values["num_users"]) for users in common)
    comparison = values["comparison"]
    assert comparison["on_other_users"] is on_others
    assert comparison["rivals"]["trial 1"]["differences"]["fused_ndcg@10"]["difference"] == pytest.approx(0.1)
    assert ("other users than those of the trials" in rivals_tables.forms_table(values)) is on_others


def test_a_form_whose_loss_is_no_number_is_worth_nothing_and_ends_no_search(
    typed_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: list[Any]
) -> None:
    calls = itertools.count()
    trained = forms_benchmark.train_and_rank

    def diverges(*given: Any) -> dict[str, Any]:
        if next(calls) == 1:
            raise DivergedError("step 3, 2 windows of users 'u01'", [4], "loss became nan; lower learning_rate")
        return trained(*given)

    monkeypatch.setattr(forms_benchmark, "train_and_rank", diverges)
    values = run(typed_features, tmp_path, 3)
    assert [row["trial"] for row in values["trials"]] == [2, 0, 1]
    assert values["trials"][-1]["fused_ndcg@10"] == 0
    assert "trial 1 ended early: step 3, 2 windows of users 'u01', the first begins with items 'sku-4'" in (
        rivals_tables.forms_table(values)
    )


def test_a_log_is_searched_with_the_inputs_that_it_has(ring_features: Path, tmp_path: Path, worth: list[Any]) -> None:
    values = run(ring_features, tmp_path, 12)
    assert {row["inputs"] for row in values["trials"]} == {"none", "gap"}
    assert set(values["left_out"]) == {"type", "type and gap"}


def test_choices_are_summed_up_by_value_and_ranges_by_halves() -> None:
    made = [(0.5, "gbce", 0.1, 1), *((worth, "softmax", 0.5 - worth, None) for worth in (0.25, 0.125, 0.0))]
    trials = [
        {"trial": n, "fused_ndcg@10": ndcg, "seconds": 1, "problem": None, "loss": loss, "dropout": dropout, "t": t}
        for n, (ndcg, loss, dropout, t) in enumerate(made)
    ]
    assert forms_benchmark.by_choice(trials) == {
        "loss": {
            "gbce": {"num_trials": 1, "best": 0.5, "median": 0.5},
            "softmax": {"num_trials": 3, "best": 0.25, "median": 0.125},
        },
        "dropout": {  # .1 and .25 against .375 and .5
            "< 0.31": {"num_trials": 2, "best": 0.5, "median": 0.375},
            "≥ 0.31": {"num_trials": 2, "best": 0.125, "median": 0.0625},
        },
        "t": {"1": {"num_trials": 1, "best": 0.5, "median": 0.5}},
    }


def test_the_table_has_every_setting_and_figure(typed_features: Path, tmp_path: Path, worth: list[Any]) -> None:
    values = run(typed_features, tmp_path, 12)
    text = rivals_tables.forms_table(values)
    losses = {row["loss"] for row in values["trials"]}
    assert losses == set(forms_benchmark.LOSSES)
    for row in values["trials"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['trial']} "))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == f"{row['fused_ndcg@10']:.4f}"
        assert f"{row['learning_rate']:.3g}" in cells
        assert {row["loss"], row["output"], row["blocks"], row["inputs"], row["schedule"]} <= set(cells)


def test_options_of_the_command_reach_the_search(ring_features: Path, tmp_path: Path, worth: list[Any]) -> None:
    command = ["benchmark", "forms", "--features", ring_features, "--out", tmp_path, "--trials", 2, "--minutes", 5]
    command += ["--users", 20, "--epochs", 0.4, "--window", 16, "--protocol", "last-out", "--seeds", 2, "--json"]
    result = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=False)
    values = json.loads(result.stdout)
    assert (values["protocol"], values["window"]["size"], values["epochs"], values["num_users"]) == (
        "last-out", 16, 0.4, 20,
    )  # fmt: skip
    assert (len(values["trials"]), values["comparison"]["num_seeds"]) == (2, 2)
    assert {row["epochs"] for row in values["trials"]} <= {0.2, 0.4, 0.8}
