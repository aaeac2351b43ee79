"""What people read at the end of a command; `benchmark_tables` and `rivals_tables` have those of the benchmarks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from recsys.contracts.artifact import Manifest, current_name
from recsys.contracts.precision import EngineName
from recsys.pipeline.plain_text import as_text, new_table, relative, trials_text

if TYPE_CHECKING:  # a nightly feature job must not wait for torch and scipy
    from recsys.pipeline.road import RoadResult
    from recsys.runtime.consistency import Consistency
    from recsys.runtime.recommender import ScoredItem

_ACCURACY = ("recall@10", "ndcg@10", "mrr", "coverage@10", "next: recall@10", "next: ndcg@10")
_ACCURACY_LAST_OUT = ("recall@10", "hit_rate@10", "ndcg@10", "mrr", "coverage@10")
"""Each user has one target there, so `next` would repeat the rest."""
_EVALUATED = ("recall@10", "hit_rate@10", "ndcg@10", "map@10", "mrr", "next: recall@10", "next: ndcg@10")
_LISTS = ("coverage@10", "gini@10", "novelty@10", "diversity@10", "repeat_share@10")
_SEGMENTS_WIDTH = 100


def features_summary(manifest: Manifest, out: Path) -> str:
    """Counts of what was read, left out and set aside."""
    m = manifest.metrics
    lines = [f"{out}: {m['num_events']:,} events, {m['num_users']:,} users, {m['num_items']:,} items"]
    if m["up_to_date"]:
        lines.append(f"tonight: nothing new; the artifact of {manifest.created_at} stays")
    else:
        tonight = f"{m['tonight']['num_events']:,} events of {m['tonight']['num_files']:,} new files"
        lines.append(f"tonight: {tonight}; {'added' if m['why_full'] is None else 'full build: ' + m['why_full']}")
    if m["died_before"]:
        lines.append(f"note: {m['died_before']}")
    for word, counts in (("left out", m["excluded"]), ("quarantined", m["quarantined"])):
        if counts:
            lines.append(f"{word}: " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())))
    for setting in ("history_types", "target_types", "count_types", "event_weights"):
        unknown = [name for name in manifest.config.get(setting, ()) if name not in m["event_types"]]
        if unknown:
            lines.append(f"note: {setting} names {', '.join(unknown)}, of which there is no event so far")
    if m["why_full"] is not None:
        lines += [f"note: {note}" for note in _odd_files(m["source_files"], m.get("optional_fields", []))]
    if m.get("passed_over"):
        others = f"{len(m['passed_over']):,} in the log's folders, such as {', '.join(m['passed_over'][:3])}"
        lines.append(f"not read: {others}")
    return "\n".join(lines)


def _odd_files(files: list[dict[str, Any]], optional_fields: list[str]) -> Iterator[str]:
    """Where files differ from the others in a way that may be a mistake."""
    lacking: dict[str, list[str]] = {}
    for entry in files:
        for field in entry.get("lacks", []):
            lacking.setdefault(field, []).append(entry["name"])
    for field, names in lacking.items():
        later = "may lack it, too" if field in optional_fields else "is refused without it, unless by --full"
        yield (
            f"no column for {field} in {len(names):,} of {len(files):,} files, such as {names[0]}; a later file {later}"
        )
    ends = {entry["name"]: entry["open_end"] for entry in files if "open_end" in entry}
    cut = [name for name, is_open in ends.items() if is_open]
    if cut and (len(cut) < len(ends) or len(ends) == 1):
        where = f"in {len(cut):,} of {len(ends):,} files, such as {cut[0]}"
        yield f"the last line has no line break {where}: is it cut off?"


def training_summary(manifest: Manifest, out: Path) -> str:
    """Best round, its validation figure and the time."""
    m = manifest.metrics
    ndcg = m["validation_ndcg@10"]
    validated = "" if ndcg is None else f", validation NDCG@10 {ndcg:.4f}"
    return f"{out}: best after {m['epochs']:.1f} epochs{validated}, {m['seconds']:.0f} s"


def release_summary(name: str, manifest: Manifest, out: Path) -> str:
    """Where the release is, how near its engine is to float32, what the gate judged by, and what was forced past it."""
    m = manifest.metrics
    size = sum(entry.size_bytes for entry in manifest.files.values())
    lines = [
        f"{out / name}: {_precision(manifest)}, {size / 1e6:.1f} MB, relative error {m['relative_error']:.2g}, "
        f"top-100 overlap {m['top100_overlap']:.3f}, fitted on {m['fitted_on']}",
        f"gate: {m['gate']}",
    ]
    if brought := m.get("summaries"):
        lines.append(
            f"summaries: {brought['num_windows']:,} closed windows of the {brought['num_users']:,} most active users, "
            f"{brought['bytes'] / 1e6:.1f} MB, {brought['seconds']:.0f} s; others are encoded behind first answers"
        )
    if m["forced_past_gate"]:
        lines.append(f"FORCED past the gate: {'; '.join(m['forced_past_gate'])}")
    return "\n".join(lines)


def _precision(manifest: Manifest) -> str:
    """What the engine that serves computes with; `precision` is what its rounded engines keep."""
    if manifest.config["engine"] == EngineName.REFERENCE:
        return f"float32 model, index of {manifest.config['items']} items"
    return str(manifest.config["precision"])


def accuracy_table(report: dict[str, Any], columns: Sequence[str] | None = None) -> str:
    """A row a ranker; of the model the mean and the standard deviation where `seeds` holds several trainings."""
    from recsys.contracts.protocol import Protocol
    from recsys.evaluation.protocols import MODEL

    if columns is None:
        columns = _ACCURACY_LAST_OUT if report["protocol"] == Protocol.LAST_OUT else _ACCURACY
    title = f"{report['num_users']:,} users, protocol {report['protocol']}, full ranking"
    table = new_table(title, "", *columns)

    def add(name: str, values: dict[str, Any], statistic: str | None = None) -> None:
        found = (_figure(values, column) for column in columns)
        table.add_row(name, *(f"{value[statistic] if statistic else value:.4f}" for value in found))

    num_seeds = report.get("seeds", {}).get("num_seeds", 1)
    for name, values in _rankers(report).items():
        if name != MODEL or num_seeds == 1:
            add(name, values)
    if num_seeds == 1:
        return as_text(table)
    add(MODEL, report["seeds"], "mean")
    add(f"± over {num_seeds} seeds", report["seeds"], "std")
    return f"{as_text(table)}\n{MODEL}: mean ± standard deviation over {num_seeds} seeds; the other rows are of one run"


def _figure(values: dict[str, Any], column: str) -> Any:
    """What a column shows; those of the next target are nested."""
    return values["next"][column.removeprefix("next: ")] if column.startswith("next: ") else values[column]


def accuracy_summary(values: dict[str, Any]) -> str:
    """The table of a benchmark, and where its looks at the test set are kept."""
    return f"{accuracy_table(values)}\n{looks_line(values)}"


def looks_line(values: dict[str, Any]) -> str:
    """How often a benchmark's folder was used to look at its test sets; what to do where no folder stays."""
    logs = values["evaluation_logs"]
    if logs is None:
        return (
            "this was a look at the test set, and no log stays without --out: "
            "if anything follows from it, write it into the log in docs/evaluate.md"
        )
    where = "" if not logs else f", in {logs[0]}" if len(logs) == 1 else f", in {len(logs)} logs such as {logs[-1]}"
    return f"looks at the test set in the log: {values['num_looks']}{where}"


def _rankers(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of every ranker, the model last."""
    from recsys.evaluation.protocols import AGAINST, MODEL

    return {**report["baselines"], **{name: report[name] for name in (AGAINST, MODEL) if name in report}}


def evaluation_summary(report: dict[str, Any]) -> str:
    """Every metric, the segments, the verdict if there is one, and how often this test set was looked at."""
    lists = new_table("what the lists are like", "", *_LISTS)
    for name, values in _rankers(report).items():
        lists.add_row(name, *("–" if values[column] is None else f"{values[column]:.4f}" for column in _LISTS))
    lines = [accuracy_table(report, _EVALUATED), "", as_text(lists), "", _segments_table(report), ""]
    comparison = report["comparison"]
    if comparison is not None:
        from recsys.evaluation.comparison import too_few

        primary = comparison["primary"]
        few = f"; {too_few(primary)}" if too_few(primary) else ""
        lines.append(
            f"against {comparison['against']}: {comparison['verdict']} by {primary['metric']}, margin "
            f"{comparison['margin']:.2%}: {primary['difference']:+.4f} "
            f"[{primary['low']:+.4f}, {primary['high']:+.4f}]{relative(primary)}{few}"
        )
    lines.append(f"evaluations of this test set in the log: {report['num_looks']}")
    return "\n".join(lines)


def _segments_table(report: dict[str, Any]) -> str:
    """The primary metric of the segments that have users: of the model and what it is compared with."""
    from recsys.evaluation.protocols import MODEL

    metric = report["metric"]
    compared = [] if report["comparison"] is None else ["A − B, 95 % interval"]
    table = new_table(f"{metric} by segment; --json has every metric", "segment", "users", MODEL, *compared)
    for row in report["segments"]:
        if row["num_users"]:
            found = row["difference"]
            cells = [f"{row['num_users']:,}", f"{row['values'][MODEL][metric]:.4f}"]
            if found is not None:
                cells.append(f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]")
            table.add_row(f"{row['by']}: {row['segment']}", *cells)
    return as_text(table, _SEGMENTS_WIDTH)


def road_summary(result: "RoadResult", out: Path) -> str:
    """The demo's closing words."""
    seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in result.seconds.items())
    return "\n".join(
        [
            features_summary(result.features, out / "features"),
            training_summary(result.checkpoint, out / "checkpoint"),
            release_summary(current_name(out / "releases") or "none", result.release, out / "releases"),
            "",
            accuracy_table(result.report.to_json()),
            "",
            f"time: {seconds}",
            f"serve it: recsys serve {out / 'releases'} --store sqlite:///{out / 'store.db'} --port 8000",
        ]
    )


def batch_summary(values: dict[str, Any]) -> str:
    """How many users and rows went where."""
    unknown = values["num_users_without_known_items"]
    have = "the popular items, which are among these" if values["popular_for_unknown"] else "none"
    without = f"; {unknown:,} users without an item that the release knows have {have}" if unknown else ""
    return f"{values['out']}: {values['num_rows']:,} rows of {values['num_users']:,} users{without}"


def trials_table(trials: list[dict[str, Any]], place: Path) -> str:
    """A row a trial, the best first, and where the best recipe is."""
    return f"{trials_text(trials, 'validation only', 110)}\nbest recipe: {place}"


def items_table(items: Sequence["ScoredItem"]) -> str:
    """A ranked list."""
    table = new_table("", "item_id", "score", "title")
    for item in items:
        table.add_row(item.item_id, f"{item.score:.3f}", item.title or "")
    popular = "popular items, for nothing is known of the user; scores are events of late"
    return "\n".join([as_text(table), *([popular] if any(item.is_popular for item in items) else [])])


def consistency_table(found: "Consistency") -> str:
    """Errors and agreement by length, and the verdict."""
    rows = new_table(
        f"{found.engine} against {found.against}",
        "events",
        "windows",
        "relative error",
        "after appends",
        "top-10 overlap",
        "top-100 overlap",
    )
    for row in found.by_length:
        appended = "–" if row.appended_error is None else f"{row.appended_error:.2g}"
        overlaps = f"{row.top10_overlap:.3f}", f"{row.top100_overlap:.3f}"
        rows.add_row(f"{row.length:,}", f"{row.num_windows}", f"{row.error:.2g}", appended, *overlaps)
    by_layer = [as_text(_layers(found))] if found.by_layer else []
    limits = f"error at most {found.tolerance.max_relative_error:g}, top-10 overlap at least "
    limits += f"{found.tolerance.min_top10_overlap:g}"
    verdict = "they agree" if found.agrees else f"they differ: {'; '.join(found.problems)}"
    return "\n".join([as_text(rows), *by_layer, f"{verdict} ({limits})"])


def _layers(found: "Consistency") -> Table:
    rows = new_table("relative error by layer", "layer", "keys", "values", "keys after appends", "values after appends")
    for row in found.by_layer:
        errors = (row.keys, row.values, row.appended_keys, row.appended_values)
        rows.add_row(f"{row.layer}", *("–" if error is None else f"{error:.2g}" for error in errors))
    return rows


def experiment_report(values: dict[str, Any]) -> str:
    """Conclusion, arms, then differences with their intervals."""
    trial, arms = values["experiment"], values["arms"]
    ended = "" if trial["stopped_ms"] is None else ", stopped"
    lines = [
        f"experiment {trial['name']}, since {values['started_at']}{ended}: {values['conclusion']}",
        f"sample ratio p = {values['sample_ratio_p']:.3g}; {values['users_in_two_arms']:,} users in two arms left out",
    ]
    metrics = list(arms[0]["figures"])
    of_arms = new_table("mean of a user's outcome", "arm", "release", "users", "still open", *metrics)
    for arm in arms:
        means = (arm["figures"].get(metric) for metric in metrics)
        cells = ["–" if figure is None else f"{figure['mean']:.4g}" for figure in means]
        of_arms.add_row(arm["arm"], arm["release"] or "current", f"{arm['users']:,}", f"{arm['users_open']:,}", *cells)
    level = 1 - trial["alpha"]
    of_pairs = new_table(
        f"difference to {arms[0]['arm']}; {level:.0%} at all looks together",
        "arm",
        "metric",
        "difference",
        "interval",
        "p",
        "",
    )
    for row in values["differences"]:
        cells = ["–"] * 3
        if row["difference"] is not None:
            interval = f"[{row['low']:+.4g}, {row['high']:+.4g}]"
            cells = [f"{row['difference']:+.4g}", interval, f"{row['p_value']:.3g}"]
        of_pairs.add_row(row["arm"], f"{row['metric']} ({row['role']})", *cells, row["verdict"])
    return "\n".join([*lines, as_text(of_arms), as_text(of_pairs)])
