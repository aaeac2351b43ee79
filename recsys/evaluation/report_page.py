"""The report page: one HTML file with its figures inside, no script, nothing loaded from elsewhere."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import Any

from recsys.evaluation import figures
from recsys.evaluation.comparison import Verdict, too_few
from recsys.evaluation.figures import rankers_of
from recsys.evaluation.protocols import AGAINST, MODEL

_ACCURACY = ("ndcg@10", "recall@10", "hit_rate@10", "map@10", "mrr", "recall@100")
_LISTS = ("coverage@10", "gini@10", "novelty@10", "diversity@10", "repeat_share@10")
_OF_SEGMENTS = ("recall@10", "hit_rate@10", "ndcg@10", "map@10", "mrr", *_LISTS)
_COMPARISON_COLUMNS = ("", "A", "B", "difference", "95 % interval", "relative", "95 % interval", "p", "p, Holm")
_VERDICTS = {
    Verdict.BETTER: "A is better than B: the whole interval of the difference lies above 0.",
    Verdict.NON_INFERIOR: "A loses less than the margin, if anything: the whole relative interval lies above −margin.",
    Verdict.WORSE: "A is worse than B: the whole interval lies below 0, and the margin is not kept.",
    Verdict.INCONCLUSIVE: "Inconclusive: this test set cannot tell whether A keeps the margin. That is not “equal”.",
}
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2126; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e5e8; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #8a8f98; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; display: block; }
.note, .origin { color: #59616b; font-size: .9rem; }
.verdict { border-left: 6px solid #59616b; background: #f4f5f7; padding: .7rem 1rem; }
.verdict b { text-transform: uppercase; letter-spacing: .03em; }
.better, .non-inferior { border-color: #1b7f4b; } .worse { border-color: #b3261e; }
"""


def page(values: dict[str, Any]) -> str:
    """The plain values of `Evaluation.to_json` as a page."""
    sections = [_origin(values), _verdict(values), _accuracy(values), _comparison(values), _lists(values)]
    body = "\n".join([*sections, _segments(values), _limits(values)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation of {escape(values['release'])}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _origin(values: dict[str, Any]) -> str:
    cut = f"cut at {values['split']}" if values["split"] else "the last event of each user held out"
    times = "once" if values["num_looks"] == 1 else f"{values['num_looks']} times"
    return (
        f"<h1>Evaluation of {escape(values['release'])}</h1>"
        f'<p class="origin">{escape(values["evaluated_at"])}; protocol {escape(values["protocol"])}, {escape(cut)}; '
        f"{values['num_users']:,} users, {values['num_targets']:,} targets, {values['num_items']:,} items, all ranked. "
        f"Release {values['release_digest'][:12]}, features {values['features_digest'][:12]}.</p>"
        f"<p>This test set has been looked at <b>{times}</b>, by the log beside the release.</p>"
    )


def _verdict(values: dict[str, Any]) -> str:
    comparison = values["comparison"]
    if comparison is None:
        return ""
    verdict, row = comparison["verdict"], comparison["primary"]
    resolution = comparison["resolution"]
    few = f" Too few differ: {too_few(row)}." if too_few(row) else ""
    power = "" if resolution is None else f" Differences below about {resolution:.2%} cannot be seen with these users."
    return (
        f'<div class="verdict {verdict}"><b>{verdict}</b> — A: this release, B: {escape(comparison["against"])}. '
        f"{_VERDICTS[Verdict(verdict)]}<br>{escape(row['metric'])} {row['difference']:+.4f}, relative "
        f"{_percent(row['relative'])} [{_percent(row['relative_low'])}, {_percent(row['relative_high'])}], "
        f"margin {comparison['margin']:.2%}.{power}{few}</div>"
    )


def _accuracy(values: dict[str, Any]) -> str:
    rankers = rankers_of(values)
    later = _table(("all targets", *_ACCURACY), _metric_rows(rankers, _ACCURACY))
    following = {name: own["next"] for name, own in rankers.items()}
    return (
        "<h2>Accuracy</h2>"
        + _image(figures.accuracy(values), f"{values['metric']} of every ranker")
        + later
        + _table(("next event only", *_ACCURACY), _metric_rows(following, _ACCURACY))
        + '<p class="note">Bars are means over users, whiskers their 95 % intervals. Overlapping whiskers do not mean '
        "that two rankers are equal: the paired comparison decides.</p>"
    )


def _comparison(values: dict[str, Any]) -> str:
    comparison = values["comparison"]
    if comparison is None:
        return ""
    rows = [comparison["primary"], *comparison["exploratory"]]
    cells = [
        (
            row["metric"] + (" (primary)" if row is comparison["primary"] else ""),
            f"{row['mean_a']:.4f}",
            f"{row['mean_b']:.4f}",
            f"{row['difference']:+.4f}",
            f"{row['low']:+.4f} … {row['high']:+.4f}",
            _percent(row["relative"]),
            f"{_percent(row['relative_low'])} … {_percent(row['relative_high'])}",
            _p(row["p_value"]),
            _p(row["p_holm"]),
        )
        for row in rows
    ]
    return (
        "<h2>Comparison, paired by user</h2>"
        + _image(figures.differences(comparison), "relative difference of every metric")
        + _table(_COMPARISON_COLUMNS, cells)
        + '<p class="note">The verdict is on the primary metric alone. The others are exploratory; their p values '
        "(paired t test) are corrected for being several (Holm).</p>"
    )


def _lists(values: dict[str, Any]) -> str:
    return "<h2>What the lists are like</h2>" + _table(("", *_LISTS), _metric_rows(rankers_of(values), _LISTS))


def _segments(values: dict[str, Any]) -> str:
    metric = values["metric"]
    rankers = [MODEL, *([AGAINST] if AGAINST in values else []), _baseline(values, metric)]
    compared = () if values["comparison"] is None else ("A − B", "95 % interval")
    parts = [
        "<h2>Segments</h2>"
        f'<p class="note">{escape(metric)}; users in brackets. A segment of items or events keeps only the targets in '
        "it, so its figures compare rankers within a row, not rows with one another, and say nothing of what the lists "
        "are like. Rows of fewer than about 50 users are noise; differences are exploratory, and not corrected for "
        "being many.</p>"
    ]
    for by, group in groupby(values["segments"], key=lambda row: row["by"]):
        rows = list(group)
        parts.append(f"<h3>By {escape(by)}</h3>")
        if sum(row["num_users"] > 0 for row in rows) > 1:
            parts.append(_image(figures.segments(rows, metric, rankers), f"{metric} by {by}"))
        parts.append(
            _table((by, "users", "targets", *rankers, *compared), _segment_rows(rows, metric, rankers, bool(compared)))
        )
        ours = {row["segment"]: row["values"][MODEL] for row in rows if row["num_users"]}
        measured = [name for name in _OF_SEGMENTS if any(name in own for own in ours.values())]
        if measured:
            parts.append(_table((f"{MODEL}, every metric", *measured), _metric_rows(ours, measured)))
    return "\n".join(parts)


def _baseline(values: dict[str, Any], metric: str) -> str:
    """The baseline that is B, else the best one."""
    baselines = values["baselines"]
    against = (values["comparison"] or {}).get("against")
    best = max(baselines, key=lambda name: float(baselines[name][metric]))
    return str(against if against in baselines else best)


def _segment_rows(
    rows: Sequence[dict[str, Any]], metric: str, rankers: Sequence[str], is_compared: bool
) -> list[Sequence[str]]:
    return [
        (
            row["segment"],
            f"{row['num_users']:,}",
            f"{row['num_targets']:,}",
            *(_number(row["values"][name].get(metric)) for name in rankers),
            *_difference(row["difference"], is_compared),
        )
        for row in rows
    ]


def _difference(found: dict[str, Any] | None, is_compared: bool) -> Sequence[str]:
    """A − B and its interval; no cells where nothing is compared."""
    if not is_compared:
        return ()
    if found is None:
        return "–", "–"
    return f"{found['difference']:+.4f}", f"{found['low']:+.4f} … {found['high']:+.4f}"


def _limits(values: dict[str, Any]) -> str:
    outside, cold = values["num_targets_outside_vocabulary"], values["num_cold_users"]
    share = outside / max(1, values["num_targets"])
    seen = "left out of the rankings" if values["protocol"] == "last-out" else "kept in the rankings"
    return (
        "<h2>What these figures do not say</h2><ul>"
        f"<li>{outside:,} targets ({share:.1%}) are items outside the vocabulary: misses for every ranker.</li>"
        f"<li>{cold:,} users without a kept event before the cut are in no mean, only in their own segment.</li>"
        f"<li>Items of a user's own history are {seen}.</li>"
        "<li>Intervals treat users as independent and know nothing of the randomness of training: another seed of the "
        "same recipe may differ by more.</li>"
        "<li>A log shows what users did with what they were shown then, not what they would do with these lists: "
        "an experiment decides that.</li></ul>"
    )


def _metric_rows(rankers: dict[str, dict[str, Any]], columns: Sequence[str]) -> list[Sequence[str]]:
    return [(name, *(_number(own.get(column)) for column in columns)) for name, own in rankers.items()]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _image(svg: str, description: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(description)}">'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2%}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
