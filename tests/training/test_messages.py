"""What training says of itself: where it stands, and at which batch it stopped."""

import io
import math
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from recsys.contracts.errors import DataError
from recsys.contracts.ids import Item, Vocabulary
from recsys.contracts.protocol import Protocol
from recsys.dataset import Histories
from recsys.training import train
from recsys.training.batches import Batch
from recsys.training.config import Recipe
from recsys.training.fit import _bar, _round_title
from recsys.training.loop import DivergedError, WindowStream
from recsys.training.processes import Processes
from recsys.whole_histories import WholeHistories


def test_the_batch_at_which_training_stops_can_be_found_in_the_log(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    training = tiny_recipe.training.model_copy(update={"learning_rate": 1e30, "warmup_steps": 1})
    recipe = tiny_recipe.model_copy(update={"training": training})
    with pytest.raises(DataError, match="became") as stopped:
        train.run(recipe, ring_features, tmp_path / "c", protocol=Protocol.TIME)
    found = re.match(
        r"step \d+, (\d+) windows of users ('u\d+'(?:, 'u\d+')*)(?: and (\d+) more)?, "
        r"the first begins with items ('sku-\d+'(?:, 'sku-\d+')*): ",
        str(stopped.value),
    )
    assert found is not None
    users, items = (part.replace("'", "").split(", ") for part in (found[2], found[4]))
    assert len(items) == 5
    assert len(users) == 5
    assert int(found[1]) >= len(users) + int(found[3] or 0)  # a user may have several windows
    history = WholeHistories(ring_features).of(users[0]) or []
    assert items in [history[start : start + 5] for start in range(len(history))]


def test_a_batch_is_named_by_the_users_of_its_windows(tiny_recipe: Recipe) -> None:
    histories = Histories(["a", "b", "c"], np.array([0, 3, 5, 9]), np.arange(1, 10, dtype=np.int32), np.arange(9))
    stream = WindowStream(histories, tiny_recipe, np.random.default_rng(0))
    batch = Batch(torch.ones(3, 2), torch.ones(3, 2), (3, 6, 5))  # all of b, then c from its second event and whole
    assert stream.users(batch) == ["b", "c"]
    assert stream.beginning(batch) == [4, 5]  # b has no more
    stopped = DivergedError("step 1", stream.beginning(batch), "loss became nan")
    items = Vocabulary([Item(item_id=f"i{n}", item_index=n, num_events=1) for n in range(1, 10)])
    assert str(stopped.named(items)) == "step 1, the first begins with items 'i4', 'i5': loss became nan"


def test_the_bar_says_which_round_and_what_ends_them() -> None:
    assert _round_title(3, 50, math.inf) == "train round 3 of at most 50"
    assert _round_title(3, 50, time.monotonic() + 720) == "train round 3 of at most 50, 12 min"
    assert _round_title(3, 50, time.monotonic() - 60).endswith(", 0 min")


def test_the_bar_shows_loss_speed_best_figure_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        "recsys.training.fit.Console",
        lambda **_: Console(file=shown, force_terminal=True, width=160, color_system=None),
    )
    trainer = SimpleNamespace(processes=Processes())
    with _bar(trainer, "train round 2", 4, 0.1234) as advance:  # type: ignore[arg-type]
        time.sleep(0.01)
        for step in (1, 2):
            advance(2.5, 100 * step)
    bar = r"train round 2 .* loss 2\.5000 +[\d,]+ events/s +best NDCG@10 0\.1234 \d:\d\d:\d\d (\d:\d\d:\d\d|-:--:--)"
    assert re.search(bar, shown.getvalue())  # spent, then left
