"""Head shape at equal width: many narrow heads or few wide ones, by latency on the CPU engine and by accuracy.

The engine is what `recsys optimize` would publish without settings: weights rounded by the fitted events, items and
sessions as a release keeps them.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optimize import arithmetic, quantize
from optimize.config import OptimizeConfig
from optimize.export import build_engine
from recsys import dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.precision import Arithmetic
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset
from recsys.evaluation.statistics import LEAST_DIFFERENT, paired_difference
from recsys.model import incremental
from recsys.model.checkpoint import Checkpoint
from recsys.pipeline.validation_users import by_others, validation_users
from recsys.runtime.engine import Engine
from recsys.runtime.fusion import Fusion
from recsys.runtime.items import ItemTable
from recsys.runtime.openvino import OpenVinoEngine
from recsys.training import fusion, train
from recsys.training.config import Recipe

WARM_UP_ROUNDS = 2
SAME_SPEED = 1.05
"""Shapes whose times differ by less take turns in being the quicker one, from run to run and from host to host."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One trained shape."""

    num_heads: int
    head_dim: int
    ndcg_of_users: dict[str, list[float]]
    """NDCG@10 on the validation part of the fitted events, of each user by each training that looked at them, with
    weights of fusion that were found on other users."""
    ndcg_of_seeds: list[float]
    epochs: float
    """Of the best round, the mean over trainings."""
    engine: Engine
    """Of the first training."""


def run(
    features: Path, recipe: Recipe, heads: Sequence[int], *, num_seeds: int, num_rounds: int, num_threads: int
) -> dict[str, Any]:
    """Train each shape alike with each of so many seeds, time all in turns, and mark those that no other beats.

    Found is the recipe's own shape unless another beats it, else the quickest that none beats and that is as accurate.
    Beside the means stands what a shape's accuracy differs by from the recipe's own, if that is among them, paired by
    user. Weights of fusion are found on other users than they are judged by.

    Raises:
        ConfigError: a number of heads that does not divide the inner width into even heads of 4 or more.
        DataError: the validation has no users to compare the shapes on.
    """
    data = dataset.load(features, Protocol.TIME)
    recipe = recipe.for_log(data)
    own, inner = recipe.model.num_heads, recipe.model.num_heads * recipe.model.head_dim
    for num_heads in heads:
        if num_heads < 1 or inner % num_heads or inner // num_heads < 4 or inner // num_heads % 2:
            raise ConfigError(
                f"{num_heads} heads do not divide the inner width {inner} into even heads of 4 or more; "
                "choose a divisor"
            )
    with tempfile.TemporaryDirectory(prefix="recsys-heads-") as folder:
        candidates = [
            _candidate(
                features, data, _shaped(recipe, num_heads), num_seeds, Path(folder) / str(num_heads), num_threads
            )
            for num_heads in heads
        ]
        milliseconds = _timed(candidates, recipe.window.most_rows, num_rounds)
    rows = [
        {
            "num_heads": candidate.num_heads,
            "head_dim": candidate.head_dim,
            **{f"{call}_ms": round(float(np.median(times)), 3) for call, times in milliseconds[place].items()},
            "validation_ndcg@10": float(_means(candidate).mean()),
            "spread": float(np.std(candidate.ndcg_of_seeds)) if num_seeds > 1 else None,
            "difference": _difference(candidate, candidates, own),
            "epochs": round(candidate.epochs, 4),
            "precision": candidate.engine.info.precision,
            "cache": candidate.engine.info.cache.value,
        }
        for place, candidate in enumerate(candidates)
    ]
    open_ms = [float(np.median(times["open"])) for times in milliseconds]
    on_frontier = _frontier(open_ms, [_means(candidate) for candidate in candidates])
    for row, is_on in zip(rows, on_frontier, strict=True):
        row["on_frontier"] = is_on
    return {
        "width": recipe.model.width,
        "inner_width": inner,
        "own_heads": own,
        "found_heads": _found(rows, own),
        "num_seeds": num_seeds,
        "num_threads": num_threads,
        "rows": rows,
    }


def picture(values: dict[str, Any], path: Path) -> None:
    """Latency against accuracy with the intervals of differences to the recipe's own shape, the frontier joined."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(values["rows"]):
        colour = "tab:blue" if row["on_frontier"] else "tab:gray"
        ndcg, apart = row["validation_ndcg@10"], row["difference"]
        reach = apart and [[max(0, apart["difference"] - apart["low"])], [max(0, apart["high"] - apart["difference"])]]
        axes.errorbar(row["open_ms"], ndcg, yerr=reach, fmt="o", color=colour, capsize=3, elinewidth=0.7)
        aside, side = ((-5, 5), "right") if place % 2 else ((5, -12), "left")
        name = f"{row['num_heads']} x {row['head_dim']}"
        axes.annotate(name, (row["open_ms"], ndcg), aside, textcoords="offset points", ha=side)
    best = sorted((row["open_ms"], row["validation_ndcg@10"]) for row in values["rows"] if row["on_frontier"])
    axes.plot(*zip(*best, strict=True), color="tab:blue", linewidth=1)
    axes.margins(0.15)
    axes.set(xlabel="a full window encoded, median ms", ylabel="validation NDCG@10", title="heads x head_dim")
    figure.savefig(path, dpi=120)


def _shaped(recipe: Recipe, num_heads: int) -> Recipe:
    """The recipe with so many heads of equal inner width."""
    values = recipe.model_dump()
    inner = recipe.model.num_heads * recipe.model.head_dim
    values["model"] |= {"num_heads": num_heads, "head_dim": inner // num_heads}
    return Recipe.from_mapping(values, "recipe")


def _candidate(
    features: Path, data: Dataset, recipe: Recipe, num_seeds: int, folder: Path, num_threads: int
) -> _Candidate:
    incremental.check(recipe.model, recipe.window.most_rows)
    ndcg_of_users: dict[str, list[float]] = {}
    ndcg_of_seeds, epochs = [], []
    for seed in range(num_seeds):
        values = recipe.model_dump()
        values["training"]["seed"] = seed
        place = folder / f"checkpoint-{seed}"
        manifest = train.run(Recipe.from_mapping(values, "recipe"), features, place, protocol=Protocol.TIME)
        if manifest.metrics["validation_ndcg@10"] is None:
            raise DataError(f"{features}: the validation has no users, so shapes cannot be compared; get more events")
        users = validation_users(features, place)
        ndcg_U, _ = by_others(fusion.candidates_of(users.judges), lambda half: fusion.fit(half, Fusion())[0], seed=0)
        for user_id, ndcg in zip(users.user_ids, ndcg_U, strict=True):
            ndcg_of_users.setdefault(user_id, []).append(float(ndcg))
        ndcg_of_seeds.append(float(ndcg_U.mean()))
        epochs.append(manifest.metrics["epochs"])
    engine = _engine(Checkpoint.open(folder / "checkpoint-0"), data, folder, num_threads)
    shape = recipe.model.num_heads, recipe.model.head_dim
    return _Candidate(*shape, ndcg_of_users, ndcg_of_seeds, float(np.mean(epochs)), engine)


def _difference(candidate: _Candidate, candidates: Sequence[_Candidate], own: int) -> dict[str, Any] | None:
    """To the recipe's own shape; None of itself, and where that is not among them."""
    of_own = next((each for each in candidates if each.num_heads == own), None)
    if of_own is None or candidate is of_own:
        return None
    return paired_difference(_means(candidate), _means(of_own), seed=0).to_json()


def _means(candidate: _Candidate) -> npt.NDArray[np.float64]:
    """Of each user over the trainings that looked at them; every shape's look at the same."""
    return np.array([np.mean(values) for values in candidate.ndcg_of_users.values()])


def _engine(checkpoint: Checkpoint, data: Dataset, folder: Path, num_threads: int) -> Engine:
    """The CPU engine as a release of the checkpoint would serve it."""
    config, size = OptimizeConfig(), checkpoint.window.most_rows
    rounded = quantize.rounded(checkpoint, config, quantize.calibrate(checkpoint, data, config))
    build_engine(rounded, folder, config.cache)
    items = ItemTable.of(checkpoint.model.embedding.weight.detach().numpy(), config.items)

    def opened(by: Arithmetic) -> Engine:
        return OpenVinoEngine(
            folder,
            items,
            num_threads=num_threads,
            precision=quantize.precision(config),
            window_size=size,
            cache=config.cache,
            arithmetic=by,
        )

    return opened(arithmetic.choose(config.arithmetic, opened, len(items), config.seed)["arithmetic"])


def _timed(candidates: Sequence[_Candidate], window_size: int, num_rounds: int) -> list[dict[str, list[float]]]:
    """Milliseconds of each candidate: a full window opened, and one event appended to it. Candidates take turns."""
    window = np.ones(window_size - 1, dtype=np.int32)
    event = np.ones(1, dtype=np.int32)
    found: list[dict[str, list[float]]] = [{"open": [], "append": []} for _ in candidates]
    for round_ in range(num_rounds + WARM_UP_ROUNDS):
        for candidate, times in zip(candidates, found, strict=True):
            marks = [time.perf_counter()]
            sessions = candidate.engine.open([window])
            marks.append(time.perf_counter())
            candidate.engine.append(sessions, [event])
            marks.append(time.perf_counter())
            if round_ >= WARM_UP_ROUNDS:
                for call, start in (("open", 0), ("append", 1)):
                    times[call].append((marks[start + 1] - marks[start]) * 1000)
    return found


def _frontier(open_ms: Sequence[float], ndcg_NU: Sequence[npt.NDArray[np.float64]]) -> list[bool]:
    """Whether no other shape beats each.

    One beats another if it is quicker and not less accurate, or more accurate and not slower. Times are the same
    within `SAME_SPEED`; accuracies are where the 95 % interval of their difference, paired by user, reaches 0, or too
    few users differ for one.
    """
    shapes = range(len(open_ms))

    def beats(a: int, b: int) -> bool:
        is_quicker, is_slower = open_ms[a] * SAME_SPEED < open_ms[b], open_ms[a] > open_ms[b] * SAME_SPEED
        apart = paired_difference(ndcg_NU[a], ndcg_NU[b], seed=0)
        is_known = apart.num_different >= LEAST_DIFFERENT
        is_better, is_worse = is_known and apart.low > 0, is_known and apart.high < 0
        return (is_quicker and not is_worse) or (is_better and not is_slower)

    return [not any(beats(a, b) for a in shapes if a != b) for b in shapes]


def _found(rows: Sequence[dict[str, Any]], own: int) -> int | None:
    """Heads of the recipe's own shape if none beats it, else of the quickest that none beats and that is as accurate.

    None where that leaves nothing, as the relation is not transitive.
    """
    kept = [row for row in rows if row["on_frontier"]]
    if any(row["num_heads"] == own for row in kept):
        return own
    as_good = [row for row in kept if row["difference"] is None or row["difference"]["high"] >= 0]
    quickest = min(as_good, key=lambda row: row["open_ms"], default=None)
    return None if quickest is None else int(quickest["num_heads"])
