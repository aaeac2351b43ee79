"""A model started from last night's against one trained from scratch, night after night over the last days of a log."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import build as features_build
from features.config import FeaturesConfig
from features.state import DAYS_FILE
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import DataError
from recsys.contracts.ids import Tokens
from recsys.contracts.protocol import Protocol
from recsys.contracts.pruning import DAY_MS
from recsys.dataset import Dataset, TestSet
from recsys.evaluation import looks
from recsys.evaluation.looks import Look
from recsys.evaluation.metrics import per_user_metrics
from recsys.evaluation.statistics import paired_difference
from recsys.model.checkpoint import Checkpoint
from recsys.model.reference import encode
from recsys.pipeline.kept_runs import kept_looks
from recsys.pipeline.progress import bar
from recsys.runtime.fusion import Fusion, evidence, search
from recsys.runtime.index import ItemIndex
from recsys.training import train
from recsys.training.config import METHOD, Recipe
from recsys.transitions import TransitionTable
from recsys.windows import answer_context, reachable

SCRATCH, STARTED = "from scratch", "started"
NIGHTS_FILE = "nights.jsonl"
K = 10

Row = dict[str, Any]


def run(
    config: FeaturesConfig, recipe: Recipe, sources: list[Path], folder: Path, num_days: int, max_nights: int | None
) -> Row:
    """Train both ways before each of the last `num_days` days with events, and rank for that day's users.

    Finished nights are kept in `folder` and not done again, so that a killed run goes on; `max_nights` ends this
    call after so many, 0 only prints. The first night is trained from scratch only: the second one starts from it.
    Each ranking is a look at the day's events, written to `evaluations.jsonl` in `folder`. Seconds are the processor's,
    of all threads: what else the machine does is not a training's cost. What a GPU does is not in them.

    Raises:
        DataError: the log has no times, or not so many days.
    """
    features_build.run(config, sources, folder / "features")
    days = _last_days(folder / "features", num_days + 1)
    done = _read(folder, days, recipe)
    stop = len(days) if max_nights is None else len(done) + max_nights
    settled = recipe.for_log(_data_and_test(folder / "features", days[0])[0])  # one model in all nights
    with bar("nights") as advance:
        for number in range(len(done), min(len(days), stop)):
            row = _night(folder, settled, days, number)
            with (folder / NIGHTS_FILE).open("a") as file:
                file.write(json.dumps({"recipe": _settings(recipe), **row}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            done.append(row)
            advance("days", len(done), len(days))
    return {**_summary(done, num_days), **kept_looks(folder)}


def _last_days(features: Path, count: int) -> list[int]:
    """The last days with events, oldest first, since 1970."""
    manifest = artifact.verify(features, "features")
    if not manifest.metrics["has_timestamps"]:
        raise DataError(f"{features}: the log has no timestamps, so it has no nights")
    days: list[int] = pl.read_parquet(features / DAYS_FILE, glob=False)["day"].sort().to_list()
    if len(days) <= count:
        raise DataError(f"{features}: {len(days)} days with events, expected more than {count}; lower --days")
    return days[-count:]


def _settings(recipe: Recipe) -> Row:
    """What all nights of a folder have in common."""
    return {**recipe.model_dump(mode="json"), "method": METHOD, "seconds": "processor"}


def _read(folder: Path, days: list[int], recipe: Recipe) -> list[Row]:
    """Nights that an earlier call finished."""
    place = folder / NIGHTS_FILE
    if not place.exists():
        return []
    rows: list[Row] = [json.loads(line) for line in place.read_text().splitlines()]
    recipes = [row.pop("recipe") for row in rows]
    if [row["day"] for row in rows] != days[: len(rows)] or any(r != _settings(recipe) for r in recipes):
        raise DataError(
            f"{place}: nights of another log, recipe or number of days, or of an older version; give the same ones "
            "or another --out"
        )
    return rows


def _night(folder: Path, recipe: Recipe, days: list[int], number: int) -> Row:
    """Both trainings before one day; the checkpoint that the next night starts from is left behind."""
    features, split_ms = folder / "features", days[number] * DAY_MS
    data, test = _data_and_test(features, days[number])
    last, here, scratch = (
        folder / f"{name}-{number - old}" for name, old in ((STARTED, 1), (STARTED, 0), (SCRATCH, 0))
    )
    row: Row = {"day": days[number], "num_users": len(test.targets), "user_ids": test.contexts.user_ids}
    row |= {"seconds": {}, "epochs": {}, "values": {}}
    for name, place, start in ((SCRATCH, scratch, None), (STARTED, here, last)):
        if start is not None and number == 0:
            shutil.copytree(scratch, here, dirs_exist_ok=True)
            continue
        began = time.process_time()
        manifest = train.run(recipe, features, place, protocol=Protocol.TIME, start=start, split_ms=split_ms)
        row["seconds"][name] = round(time.process_time() - began, 2)
        row["epochs"][name] = manifest.metrics["epochs"]
        row["values"][name] = values = _values(Checkpoint.open(place), data, test)
        look = Look.now(data, manifest.digest, float(np.mean(values[f"ndcg@{K}"])))
        looks.record(folder / looks.LOG_FILE, look)
    shutil.rmtree(scratch)
    shutil.rmtree(last, ignore_errors=True)
    return row


def _data_and_test(features: Path, day: int) -> tuple[Dataset, TestSet]:
    """What is known before a day, and who is ranked for on it."""
    data = dataset.load(features, Protocol.TIME, split_ms=day * DAY_MS)
    return data, of_one_day(data.test_set(), (day + 1) * DAY_MS)


def of_one_day(test: TestSet, end_ms: int) -> TestSet:
    """The users with an event before `end_ms`, and their targets until then."""
    within = [times < end_ms for times in test.target_times_ms]
    users = [user for user, mask in enumerate(within) if mask.any()]
    chosen = [test.contexts[user] for user in users]
    contexts = replace(
        test.contexts,
        user_ids=[test.contexts.user_ids[user] for user in users],
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in chosen])]).astype(np.int64),
        tokens=np.concatenate([np.empty(0, dtype=np.int32), *chosen]),
    )
    return TestSet(contexts, [test.targets[user][within[user]] for user in users], test.num_cold_users)


def _values(checkpoint: Checkpoint, data: Dataset, test: TestSet) -> dict[str, list[float]]:
    """NDCG and recall at 10 of each user of the day, by the float32 model fused with counts."""
    index = ItemIndex.build(checkpoint.model.items_VD.detach().numpy(), checkpoint.trend_V)
    fusion = Fusion.from_mapping(checkpoint.manifest.config["fusion"], "checkpoint: fusion")
    table = TransitionTable.fit(data.fit, len(data.vocabulary))
    vectors_UD = encode(checkpoint.model, [answer_context(context, checkpoint.window) for context in test.contexts])
    nothing: Tokens = np.empty(0, dtype=np.int32)

    def lists() -> Iterator[Tokens]:
        for user, context in enumerate(test.contexts):
            known = evidence(reachable(context, checkpoint.window), table)
            yield search(index, vectors_UD[user : user + 1], known, K, nothing, fusion)[0]

    measured = per_user_metrics(np.stack(list(lists())), test.targets, [K])
    return {name: measured[name].tolist() for name in (f"ndcg@{K}", f"recall@{K}")}


def _summary(rows: list[Row], num_days: int) -> Row:
    """Means of each night, and the paired difference over all nights but the first.

    A user who returns on many nights is one user of the difference: all their nights are resampled together.
    """
    compared = [row for row in rows if STARTED in row["values"]]
    nights = [
        {
            "date": time.strftime("%Y-%m-%d", time.gmtime(row["day"] * 86_400)),
            **{key: row[key] for key in ("num_users", "seconds", "epochs")},
            **{
                metric: {name: float(np.mean(values[metric])) for name, values in row["values"].items()}
                for metric in (f"ndcg@{K}", f"recall@{K}")
            },
        }
        for row in rows
    ]
    result: Row = {"num_days": num_days, "num_nights_compared": len(compared), "nights": nights}
    if compared:
        started, scratch = (
            np.concatenate([row["values"][name][f"ndcg@{K}"] for row in compared]) for name in (STARTED, SCRATCH)
        )
        user_ids = [user_id for row in compared for user_id in row["user_ids"]]
        result["num_user_nights"] = len(user_ids)
        result["difference"] = paired_difference(started, scratch, seed=0, user_ids=user_ids).to_json()
        seconds = {name: sum(row["seconds"][name] for row in compared) for name in (STARTED, SCRATCH)}
        result["seconds"] = {name: round(total, 1) for name, total in seconds.items()}
        result["seconds_per_night"] = {name: round(total / len(compared), 1) for name, total in seconds.items()}
    return result


def picture(values: Row, path: Path) -> None:
    """NDCG@10 and seconds of each night, both ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name, color in ((SCRATCH, "tab:gray"), (STARTED, "tab:blue")):
        for axes, key in ((above, f"ndcg@{K}"), (below, "seconds")):
            nights = [night for night in values["nights"] if name in night[key]]
            axes.plot(
                [night["date"] for night in nights],
                [night[key][name] for night in nights],
                marker="o",
                color=color,
                label=name,
            )
    above.set_ylabel("NDCG@10 of the next day")
    below.set_ylabel("processor seconds of training")
    below.set_ylim(bottom=0)
    below.tick_params(axis="x", rotation=60)
    above.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
