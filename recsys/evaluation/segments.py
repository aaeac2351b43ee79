"""The same figures for parts of the test: which users, which items, which events the mean hides.

A segment of users (by history length; users unknown at the cut) has every metric: of the accuracy of its users'
lists, and of what these lists are like: coverage, Gini, novelty, diversity, repeat share.

A segment of target events (by item age, item popularity, event type, whether the item is known) has recall, hit
rate, NDCG, MAP and MRR: a user's relevant items are then those of the segment, and a user without any is not
counted in it. What a list is like does not depend on what is looked for in it, so those metrics are left out.

Nothing is dropped silently: users and items unknown at the cut are segments too.
"""

# U users of the report, E their target events, P distinct (user, target) pairs, K length of the ranked lists,
# V items of the catalogue (a V axis has V + 1 entries, entry 0 = PAD)

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.contracts.ids import PAD, Tokens, Vocabulary
from recsys.dataset import Dataset, TestSet
from recsys.evaluation import divisions
from recsys.evaluation.divisions import TargetFacts
from recsys.evaluation.lists import ListFacts, list_means, list_values
from recsys.evaluation.metrics import (
    Pairs,
    PerUser,
    Targets,
    coverage_at_k,
    distinct_pairs,
    is_in,
    metrics_of_hits,
    per_user_metrics,
)
from recsys.evaluation.protocols import MODEL, Report
from recsys.evaluation.statistics import PairedDifference, paired_difference

UNKNOWN_USERS = "no kept event before the cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One part of the test."""

    by: str
    """What the test is divided by."""
    name: str
    num_users: int
    num_targets: int
    """Distinct (user, target) pairs."""
    values: dict[str, dict[str, float]]
    """By ranker and metric, means over the segment's users; nan where undefined, no metric where there is no user."""
    difference: PairedDifference | None = None
    """Of the primary metric, A − B; None without a B or without users."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is undefined is None."""
        return {
            "by": self.by,
            "segment": self.name,
            "num_users": self.num_users,
            "num_targets": self.num_targets,
            "values": {ranker: _plain(values) for ranker, values in self.values.items()},
            "difference": None if self.difference is None else self.difference.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of every segment."""

    k: int
    """Length at which lists are judged."""
    metric: str
    """The primary one, of accuracy; it may be at another length."""
    against: str | None
    """Name of the ranker that is B."""

    @property
    def ks(self) -> list[int]:
        """Lengths that the metrics of accuracy need."""
        _, at, k = self.metric.partition("@")
        return sorted({self.k, int(k)} if at else {self.k})

    @property
    def accuracy(self) -> list[str]:
        """Metrics of accuracy, each once."""
        names = [f"{name}@{self.k}" for name in ("recall", "hit_rate", "ndcg", "map")]
        return list(dict.fromkeys([*names, "mrr", self.metric]))


def by_segment(
    data: Dataset,
    shown: Vocabulary,
    test: TestSet,
    report: Report,
    question: Question,
    list_facts: ListFacts,
    lists: Mapping[str, Mapping[str, PerUser]],
    for_unknown: Mapping[str, Tokens],
) -> list[Segment]:
    """Every ranker in every segment, empty segments among them; see the head of this file for which metrics.

    `lists` are the `list_values` of each ranker, `for_unknown` what each ranks for an empty history, shape [K]. Where
    there is a B, the primary metric is compared, paired by user.
    """
    lengths = test.contexts.lengths[report.rows]
    parts = _Parts(report, question, distinct_pairs([test.targets[row] for row in report.rows]))
    facts = TargetFacts.of(data, shown, test, report)
    return [
        *(
            parts.of_users("history length", name, np.flatnonzero(mask), lists)
            for name, mask in divisions.bands(lengths, divisions.HISTORY_BOUNDS, "")
        ),
        *(
            parts.of_targets(by, name, facts.user[mask], facts.target[mask])
            for by, name, mask in divisions.of_targets(facts, data.manifest.metrics.get("event_types", []))
        ),
        _unknown_users(test, report, question, list_facts, for_unknown),
    ]


class _Parts:
    """Parts of a report. Which target each place of a list holds is found out once for all of them."""

    def __init__(self, report: Report, question: Question, wanted: Pairs) -> None:
        self._report = report
        self._question = question
        self._wanted = wanted
        self._low = int(wanted.target.min(initial=PAD))
        self._span = 1 + int(wanted.target.max(initial=PAD)) - self._low
        self._keys_P = self._key(wanted.user, wanted.target)
        self._hits = {name: self._hits_of(result.ranked) for name, result in report.results.items()}

    def of_users(
        self, by: str, name: str, rows: npt.NDArray[np.int64], lists: Mapping[str, Mapping[str, PerUser]]
    ) -> Segment:
        """These rows of the report, with all their targets."""
        results, k = self._report.results, self._question.k
        accuracy = {ranker: _rows(result.headline, rows) for ranker, result in results.items()}
        described = {
            ranker: _described(result.ranked[rows], _rows(lists[ranker], rows), self._report.num_items, k)
            for ranker, result in results.items()
            if len(rows)
        }
        return _segment(by, name, accuracy, described, int(self._wanted.num_relevant[rows].sum()), self._question)

    def of_targets(self, by: str, name: str, user: npt.NDArray[np.int64], target: Targets) -> Segment:
        """These targets alone; entry e of `user` is the row of the user who has target e."""
        chosen_P = np.zeros(len(self._keys_P), dtype=bool)
        chosen_P[self._pair(user, target)] = True
        num_relevant = np.bincount(self._wanted.user[chosen_P], minlength=self._wanted.num_users).astype(np.int64)
        rows = np.flatnonzero(num_relevant)
        row_of_user = np.cumsum(num_relevant > 0) - 1
        accuracy = {}
        for ranker, (hit_user, place, pair) in self._hits.items():
            hits = np.zeros((len(rows), self._report.results[ranker].ranked.shape[1]), dtype=bool)
            is_chosen = chosen_P[pair]
            hits[row_of_user[hit_user[is_chosen]], place[is_chosen]] = True
            accuracy[ranker] = metrics_of_hits(hits, num_relevant[rows], self._question.ks)
        return _segment(by, name, accuracy, {}, int(chosen_P.sum()), self._question)

    def _hits_of(self, ranked: Tokens) -> tuple[npt.NDArray[np.int64], ...]:
        """Row, place in the list and pair of everything that the lists found."""
        user, place = np.nonzero(is_in(ranked, self._wanted))
        return user, place, self._pair(user, ranked[user, place].astype(np.int64))

    def _pair(self, user: npt.NDArray[np.int64], target: Targets) -> npt.NDArray[np.int64]:
        """Positions of pairs, all of them wanted."""
        return np.searchsorted(self._keys_P, self._key(user, target))

    def _key(self, user: npt.NDArray[np.int64], target: Targets) -> npt.NDArray[np.int64]:
        return user * self._span + (target - self._low)


def _segment(
    by: str,
    name: str,
    accuracy: Mapping[str, Mapping[str, PerUser]],
    described: Mapping[str, Mapping[str, float]],
    num_targets: int,
    question: Question,
) -> Segment:
    """Means of per-user values, beside what is a mean already."""
    num_users = len(next(iter(accuracy.values()))[question.metric])
    names = question.accuracy if num_users else []
    values = {
        ranker: {metric: float(own[metric].mean()) for metric in names} | dict(described.get(ranker, {}))
        for ranker, own in accuracy.items()
    }
    difference = None
    if question.against is not None and num_users:
        a, b = accuracy[MODEL][question.metric], accuracy[question.against][question.metric]
        difference = paired_difference(a, b, seed=0)
    return Segment(by=by, name=name, num_users=num_users, num_targets=num_targets, values=values, difference=difference)


def _described(ranked: Tokens, values: Mapping[str, PerUser], num_items: int, k: int) -> dict[str, float]:
    return {f"coverage@{k}": coverage_at_k(ranked, k, num_items), **list_means(ranked, values, num_items, k)}


def _unknown_users(
    test: TestSet, report: Report, question: Question, list_facts: ListFacts, for_unknown: Mapping[str, Tokens]
) -> Segment:
    """Users without a history get the same list each, of every ranker its own."""
    targets = [row for row in test.cold_targets if len(row)]
    k = question.k
    had_nothing = distinct_pairs([np.empty(0, dtype=np.int64)])
    accuracy, described = {}, {}
    for name, list_K in for_unknown.items():
        accuracy[name] = per_user_metrics(np.tile(list_K, (len(targets), 1)), targets, question.ks)
        if targets:
            one = list_K[None, :]
            described[name] = _described(one, list_values(one, had_nothing, list_facts, k), report.num_items, k)
    num_targets = len(distinct_pairs(targets).target)
    return _segment("user", UNKNOWN_USERS, accuracy, described, num_targets, question)


def _rows(values: Mapping[str, PerUser], rows: npt.NDArray[np.int64]) -> dict[str, PerUser]:
    return {name: value[rows] for name, value in values.items()}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if np.isnan(value) else value for name, value in values.items()}
