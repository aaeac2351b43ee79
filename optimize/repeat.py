"""Fits the repeat boost on the past: what users did after a cut that lies before anything held out."""

from itertools import product
from typing import Any

import numpy as np

from recsys.contracts.ids import PAD, Tokens
from recsys.dataset import Dataset, Protocol
from recsys.evaluation.metrics import per_user_metrics
from recsys.runtime.engine import Engine
from recsys.runtime.index import ItemIndex
from recsys.runtime.repeat import RepeatBoost, best, seen_items
from recsys.windows import WindowConfig, open_window, reachable

BASES = (-4.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
FREQUENCIES = (0.0, 1.0, 2.0)
RECENCIES = (0.0, 0.3, 0.5, 1.0)
MIN_USERS = 30
CUT_QUANTILE = 0.9
DEPTH = 10


def fit(
    engine: Engine, index: ItemIndex, data: Dataset, window: WindowConfig, num_users: int, seed: int
) -> RepeatBoost:
    """The boost with the best NDCG@10 over all later items, seen ones in the ranking.

    Off under last-out, which masks seen items, for logs without times, and with too few users to tell.
    """
    if data.protocol is Protocol.LAST_OUT or data.split_ms is None:
        return RepeatBoost()
    contexts, targets = _cut(data)
    if len(contexts) < MIN_USERS:
        return RepeatBoost()
    chosen = np.sort(np.random.default_rng(seed).permutation(len(contexts))[:num_users])
    contexts, targets = [contexts[u] for u in chosen], [targets[u] for u in chosen]
    candidates = _candidates(engine, index, contexts, window)
    settings = [RepeatBoost(base=b, frequency=f, recency=r) for b, f, r in product(BASES, FREQUENCIES, RECENCIES)]
    return max([RepeatBoost(), *settings], key=lambda boost: _ndcg(boost, candidates, targets))


def _cut(data: Dataset) -> tuple[list[Tokens], list[Any]]:
    """Fitted histories cut at a moment of their own: (before, after) of users with both."""
    moment = np.quantile(data.fit.timestamps_ms, CUT_QUANTILE)
    contexts, targets = [], []
    for user, history in enumerate(data.fit):
        times = data.fit.timestamps_ms[data.fit.offsets[user] : data.fit.offsets[user + 1]]
        before = int(np.searchsorted(times, moment, side="left"))
        if 0 < before < len(history):
            contexts.append(history[:before])
            targets.append(history[before:].astype(np.int64))
    return contexts, targets


def _candidates(
    engine: Engine, index: ItemIndex, contexts: list[Tokens], window: WindowConfig
) -> list[tuple[Any, ...]]:
    """Per user: the best unseen items with scores, and the seen ones with scores and what boosts them."""
    vectors_BD = engine.encode([open_window(context, window) for context in contexts])
    rows: list[tuple[Any, ...]] = []
    for i, context in enumerate(contexts):
        seen, times_seen, events_since = seen_items(reachable(context, window))
        tokens, scores = index.search(vectors_BD[i : i + 1], DEPTH, [seen])
        real = tokens[0] != PAD
        rows.append(
            (tokens[0][real], scores[0][real], seen, index.vectors(seen) @ vectors_BD[i], times_seen, events_since)
        )
    return rows


def _ndcg(boost: RepeatBoost, candidates: list[tuple[Any, ...]], targets: list[Any]) -> float:
    ranked = np.stack(
        [
            best(
                np.concatenate([fresh, seen]),
                np.concatenate([fresh_scores, seen_scores + boost.boosts(times_seen, events_since)]),
                DEPTH,
            )[0]
            for fresh, fresh_scores, seen, seen_scores, times_seen, events_since in candidates
        ]
    )
    return float(np.mean(per_user_metrics(ranked, targets, (DEPTH,))[f"ndcg@{DEPTH}"]))
