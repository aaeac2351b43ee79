"""What people read at the end of a command."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from recsys.contracts.artifact import Manifest, current_name
from recsys.contracts.precision import EngineName
from recsys.evaluation.statistics import LEAST_DIFFERENT
from recsys.pipeline import case_report

if TYPE_CHECKING:  # a nightly feature job must not wait for torch and scipy
    from recsys.model.flops import EncodeCost
    from recsys.pipeline.road import RoadResult
    from recsys.runtime.consistency import Consistency
    from recsys.runtime.recommender import ScoredItem

_ACCURACY = ("recall@10", "ndcg@10", "mrr", "coverage@10", "next: recall@10", "next: ndcg@10")
_ACCURACY_LAST_OUT = ("recall@10", "hit_rate@10", "ndcg@10", "mrr", "coverage@10")
"""Each user has one target there, so `next` would repeat the rest."""
_EVALUATED = ("recall@10", "hit_rate@10", "ndcg@10", "map@10", "mrr", "next: recall@10", "next: ndcg@10")
_LISTS = ("coverage@10", "gini@10", "novelty@10", "diversity@10", "repeat_share@10")
_SEGMENTS_WIDTH = 100


def _text(table: Table, width: int = 110) -> str:
    """The table as plain text, in a width that fits a terminal and a README unless another is given."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined,no-any-return]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


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
    table = _table(title, "", *columns)

    def add(name: str, values: dict[str, Any], statistic: str | None = None) -> None:
        found = (_figure(values, column) for column in columns)
        table.add_row(name, *(f"{value[statistic] if statistic else value:.4f}" for value in found))

    num_seeds = report.get("seeds", {}).get("num_seeds", 1)
    for name, values in _rankers(report).items():
        if name != MODEL or num_seeds == 1:
            add(name, values)
    if num_seeds == 1:
        return _text(table)
    add(MODEL, report["seeds"], "mean")
    add(f"± over {num_seeds} seeds", report["seeds"], "std")
    return f"{_text(table)}\n{MODEL}: mean ± standard deviation over {num_seeds} seeds; the other rows are of one run"


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
    lists = _table("what the lists are like", "", *_LISTS)
    for name, values in _rankers(report).items():
        lists.add_row(name, *("–" if values[column] is None else f"{values[column]:.4f}" for column in _LISTS))
    lines = [accuracy_table(report, _EVALUATED), "", _text(lists), "", _segments_table(report), ""]
    comparison = report["comparison"]
    if comparison is not None:
        from recsys.evaluation.comparison import too_few

        primary = comparison["primary"]
        few = f"; {too_few(primary)}" if too_few(primary) else ""
        lines.append(
            f"against {comparison['against']}: {comparison['verdict']} by {primary['metric']}, margin "
            f"{comparison['margin']:.2%}: {primary['difference']:+.4f} "
            f"[{primary['low']:+.4f}, {primary['high']:+.4f}]{_relative(primary)}{few}"
        )
    lines.append(f"evaluations of this test set in the log: {report['num_looks']}")
    return "\n".join(lines)


def _segments_table(report: dict[str, Any]) -> str:
    """The primary metric of the segments that have users: of the model and what it is compared with."""
    from recsys.evaluation.protocols import MODEL

    metric = report["metric"]
    compared = [] if report["comparison"] is None else ["A − B, 95 % interval"]
    table = _table(f"{metric} by segment; --json has every metric", "segment", "users", MODEL, *compared)
    for row in report["segments"]:
        if row["num_users"]:
            found = row["difference"]
            cells = [f"{row['num_users']:,}", f"{row['values'][MODEL][metric]:.4f}"]
            if found is not None:
                cells.append(f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]")
            table.add_row(f"{row['by']}: {row['segment']}", *cells)
    return _text(table, _SEGMENTS_WIDTH)


def _relative(row: dict[str, Any]) -> str:
    """A relative difference with its interval, where there is one."""
    if row["relative_low"] is None:
        return ""
    return f", relative {row['relative']:+.2%} [{row['relative_low']:+.2%}, {row['relative_high']:+.2%}]"


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


def nights_table(values: dict[str, Any]) -> str:
    """A row a night, both ways, and the paired difference."""
    from recsys.pipeline.nightly_benchmark import SCRATCH, STARTED

    ways = (SCRATCH, STARTED)
    title = f"{values['num_nights_compared']} of {values['num_days']} nights compared, NDCG@10 of the next day"
    columns = [f"{what}, {way}" for what in ("NDCG@10", "seconds", "epochs") for way in ways]
    table = _table(title, "day", "users", *columns)
    for night in values["nights"]:
        ndcgs = [f"{night['ndcg@10'][way]:.4f}" if way in night["ndcg@10"] else "" for way in ways]
        costs = [f"{night[key][way]:.1f}" if way in night[key] else "" for key in ("seconds", "epochs") for way in ways]
        table.add_row(night["date"], f"{night['num_users']:,}", *ndcgs, *costs)
    lines = [_text(table)]
    if "difference" in values:
        d, ways_apart = values["difference"], f"{STARTED} minus {SCRATCH}"
        lines.append(
            f"{ways_apart}: {d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]{_relative(d)}; "
            f"{values['num_user_nights']:,} users of a day, resampled by user: {d['num_users']:,} different ones"
        )
        spent = (
            f"{way} {values['seconds_per_night'][way]:,.0f} ({values['seconds'][way]:,.0f} in all)" for way in ways
        )
        lines.append(f"processor seconds of training a night: {', '.join(spent)}")
    return "\n".join([*lines, looks_line(values)])


def trials_table(trials: list[dict[str, Any]], place: Path) -> str:
    """A row a trial, the best first, and where the best recipe is."""
    return f"{_trials(trials, 'validation only', 110)}\nbest recipe: {place}"


def _trials(trials: list[dict[str, Any]], title: str, width: int) -> str:
    """All settings and figures but the seconds."""
    short = {"num_layers": "layers", "learning_rate": "rate", "weight_decay": "decay", "num_negatives": "negatives"}
    short |= {"gbce_negatives": "negatives", "gbce_calibration": "t", "is_averaged": "averaged"}
    short |= {"fused_ndcg@10": "fused NDCG@10", "ndcg@10": "NDCG@10"}
    columns = [name for name in trials[0] if name != "seconds"]
    table = _table(title, *(short.get(name, name) for name in columns))
    for row in trials:
        table.add_row(*(_setting(name, row[name]) for name in columns))
    return _text(table, width)


def _setting(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if "ndcg" in name else f"{value:.3g}"
    return "" if value is None else str(value)


def items_table(items: Sequence["ScoredItem"]) -> str:
    """A ranked list."""
    table = _table("", "item_id", "score", "title")
    for item in items:
        table.add_row(item.item_id, f"{item.score:.3f}", item.title or "")
    popular = "popular items, for nothing is known of the user; scores are events of late"
    return "\n".join([_text(table), *([popular] if any(item.is_popular for item in items) else [])])


def windows_table(context: int, costs: Sequence["EncodeCost"]) -> str:
    """FLOPs by window setting, as shares of the first row."""
    table = _table(
        f"one history of {context:,} events",
        "setting",
        "window",
        "stride",
        "encoded",
        "attention GFLOP",
        "GFLOP",
        "of full",
    )
    full = costs[0].total_flops
    for cost in costs:
        share = cost.total_flops / full
        table.add_row(
            cost.name,
            f"{cost.window.size:,}",
            f"{cost.window.stride:,}",
            f"{cost.num_encoded:,}",
            f"{cost.attention_flops / 1e9:.3f}",
            f"{cost.total_flops / 1e9:.3f}",
            f"{share:.0%}",
        )
    return _text(table)


def figures_table(values: dict[str, Any]) -> str:
    """Figures by name, one a line."""
    table = _table("", "figure", "value")
    for name, value in values.items():
        table.add_row(name, json.dumps(value))
    return _text(table)


def features_cost_table(values: dict[str, Any]) -> str:
    """The feature job's figures, and where its time goes."""
    table = _table(f"{values['events']:,} simulated events", "figure", "value")
    names = ["seconds", "peak_gib", "events_per_second", "floor_events", "floor_ratio", "floor_peak_gib"]
    names += ["rectools_events", "rectools_ratio", "rectools_csv_ratio"]
    for name in (*names, "one_day_seconds", "one_day_share", "growth_10x"):
        table.add_row(name, "–" if values[name] is None else f"{values[name]:,}")
    for title, steps in (("full build", values["steps"]), ("one more day", values["one_day_steps"])):
        for step in steps:
            table.add_row(f"{title}: {step['step']}", f"{step['seconds']:.2f} s")
    return _text(table)


def case_summary(values: dict[str, Any]) -> str:
    """Latency by step, then the figures beside those to beat: an A100 with TensorRT."""
    latency = values["latency_ms"]
    steps = _table("one user, median", "switched on", "ms", "times faster than before", "peak MB")
    switched_on = case_report.words(values["window"])
    for name, words in switched_on.items():
        peak_mb = values["memory"][name]["peak_mb"]
        steps.add_row(words, f"{latency[name]:.2f}", f"{latency['before'] / latency[name]:.1f}", f"{peak_mb:.0f}")
    figures = _table("after against before", "figure", "value", "to beat")
    upper = values["quantization_loss_upper"]
    for name, value, rival in (
        ("latency, cold user", f"{values['latency_ratio_cold']:.1f} x faster", "3.37 x"),
        *_without_summaries(values),
        ("latency, warm user", f"{values['latency_ratio_warm']:.1f} x faster", "–"),
        ("against RePlay's compiled SasRec, cold user", _times(values["replay_ratio_cold"]), "2 x"),
        ("against RePlay's compiled SasRec, warm user", _times(values["replay_ratio_warm"]), "10 x"),
        ("peak memory", f"{values['memory_ratio']:.3f} ({values['peak_mb']:.0f} MB)", "0.458"),
        ("release on disk", f"{values['disk_ratio']:.3f}", "–"),
        ("NDCG@10", f"{values['accuracy_change']:+.2%} (at least {values['accuracy_change_low']:+.2%})", "+2.1 %"),
        ("loss by quantization, at most", "not measured" if upper is None else f"{upper:.2%}", "0.3 %"),
        ("top-10 overlap", f"{values['top10_overlap']:.4f}", "–"),
        *(
            (f"error of {words} by plain rounding's, {bits} bits", f"{values[f'{key}_error_ratio_{bits}']:.3f}", bar)
            for key, words in (("awq", "AWQ alone"), ("awq_compensated", "AWQ, compensated (GPTQ)"))
            for bits, bar in ((8, "1.0"), (4, "0.9"))
        ),
        ("start to first answer", f"{values['load_s']:.2f} s", "–"),
    ):
        figures.add_row(name, value, rival)
    causes = _table("NDCG@10 by cause", "switched on", "change", "at least", "at most")
    for name, one in values["accuracy_by_cause"].items():
        causes.add_row(switched_on[name], f"{one['change']:+.2%}", f"{one['low']:+.2%}", f"{one['high']:+.2%}")
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in values["users_per_second"].items())
    arithmetic = ", ".join(f"{name} {of}" for name, of in values["arithmetic"].items())
    kept = values["memory"]["cache"]
    sessions = f"{kept['num_sessions']} users kept in {values['cache']}, {kept['sessions_mb']:.1f} MB of the peak"
    return (
        f"{_text(steps)}\nsessions: {sessions}\narithmetic: {arithmetic}\n\n{_text(figures)}\n\n{_text(causes)}\n\n"
        f"users per second, eight in one call: {rates}\n"
        f"gate: {values['gate']}\n{looks_line(values)}"
    )


def _without_summaries(values: dict[str, Any]) -> list[tuple[str, str, str]]:
    ratio = values["latency_ratio_cold_without_summaries"]
    return [("latency, cold user, summaries encoded too", f"{ratio:.1f} x faster", "–")] if ratio else []


def _times(ratio: float | None) -> str:
    return "not installed" if ratio is None else f"{ratio:.1f} x faster"


def heads_table(values: dict[str, Any]) -> str:
    """Shapes of equal width, those on the frontier marked."""
    kept = dict.fromkeys(f"{row['precision']}, {row['cache']} sessions" for row in values["rows"])
    title = f"inner width {values['inner_width']}, {values['num_threads']} threads; {' | '.join(kept)}"
    rows = _table(title, "heads x head_dim", "open ms", "append ms", "validation NDCG@10", "epochs", "frontier")
    for row in values["rows"]:
        rows.add_row(
            f"{row['num_heads']} x {row['head_dim']}",
            f"{row['open_ms']:.2f}",
            f"{row['append_ms']:.2f}",
            f"{row['validation_ndcg@10']:.4f}",
            f"{row['epochs']:.1f}",
            "yes" if row["on_frontier"] else "",
        )
    return _text(rows)


def consistency_table(found: "Consistency") -> str:
    """Errors and agreement by length, and the verdict."""
    rows = _table(
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
    by_layer = [_text(_layers(found))] if found.by_layer else []
    limits = f"error at most {found.tolerance.max_relative_error:g}, top-10 overlap at least "
    limits += f"{found.tolerance.min_top10_overlap:g}"
    verdict = "they agree" if found.agrees else f"they differ: {'; '.join(found.problems)}"
    return "\n".join([_text(rows), *by_layer, f"{verdict} ({limits})"])


def _layers(found: "Consistency") -> Table:
    rows = _table("relative error by layer", "layer", "keys", "values", "keys after appends", "values after appends")
    for row in found.by_layer:
        errors = (row.keys, row.values, row.appended_keys, row.appended_values)
        rows.add_row(f"{row.layer}", *("–" if error is None else f"{error:.2g}" for error in errors))
    return rows


def engine_table(values: dict[str, Any]) -> str:
    """Open and append by length and batch; what of a GPU they use, where there is one."""
    names = {"MB": "gpu_memory_mb", "SMs": "sm_share", "tensor cores": "tensor_share"}
    used = names if any("sm_share" in row for row in values["rows"]) else {}
    rows = _table(
        f"{values['engine']}: {values['precision']}, {values['num_threads']} threads, cache {values['cache']}",
        "call",
        "events",
        "batch",
        "p50 ms",
        "p99 ms",
        "windows/s",
        *(f"{column} of the GPU" for column in used),
    )
    for row in values["rows"]:
        cells = f"{row['events']:,}", f"{row['batch']}", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"
        figures = ("–" if row.get(name) is None else f"{row[name]:.2f}" for name in used.values())
        rows.add_row(row["call"], *cells, f"{row['windows_per_s']:.0f}", *figures)
    seen = values["every_length"]
    return (
        f"{_text(rows)}\na session of a full window keeps {values['session_bytes']:,} bytes\n"
        f"windows of {seen['num_lengths']:,} lengths: {seen['new_ms']:.2f} ms each the first time, "
        f"{seen['again_ms']:.2f} again; the process grew by {seen['grown_mb']:.1f} MB"
    )


def experiment_report(values: dict[str, Any]) -> str:
    """Conclusion, arms, then differences with their intervals."""
    trial, arms = values["experiment"], values["arms"]
    ended = "" if trial["stopped_ms"] is None else ", stopped"
    lines = [
        f"experiment {trial['name']}, since {values['started_at']}{ended}: {values['conclusion']}",
        f"sample ratio p = {values['sample_ratio_p']:.3g}; {values['users_in_two_arms']:,} users in two arms left out",
    ]
    metrics = list(arms[0]["figures"])
    of_arms = _table("mean of a user's outcome", "arm", "release", "users", "still open", *metrics)
    for arm in arms:
        means = (arm["figures"].get(metric) for metric in metrics)
        cells = ["–" if figure is None else f"{figure['mean']:.4g}" for figure in means]
        of_arms.add_row(arm["arm"], arm["release"] or "current", f"{arm['users']:,}", f"{arm['users_open']:,}", *cells)
    level = 1 - trial["alpha"]
    of_pairs = _table(
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
    return "\n".join([*lines, _text(of_arms), _text(of_pairs)])


def choices_table(values: dict[str, Any]) -> str:
    """Accuracy of the default's form and its rivals; what the log has no input for."""
    lines = [f"{name} left out: {why}" for name, why in values["left_out"].items()]
    return "\n".join([_rivals_table(values), *lines])


def forms_table(values: dict[str, Any]) -> str:
    """Every trial, the best first; what each choice led to; the best form against the default's."""
    trials = [{name: row[name] for name in row if name != "problem"} for row in values["trials"]]
    parts = [_trials(trials, f"{values['data']}: {_size(values)}, one seed, validation only", 170)]
    choices = _table("trials by choice", "choice", "value", "trials", "best", "median")
    for name, groups in values["choices"].items():
        for value, row in groups.items():
            figures = str(row["num_trials"]), f"{row['best']:.4f}", f"{row['median']:.4f}"
            label = _setting(name, {"True": True, "False": False}.get(value, value))
            choices.add_row(name, label, *figures)
    parts.append(_text(choices))
    parts += [f"trial {row['trial']} ended early: {row['problem']}" for row in values["trials"] if row["problem"]]
    parts += [f"{name} left out: {why}" for name, why in values["left_out"].items()]
    if values["comparison"] is None:
        return "\n".join([*parts, "the default's form is the best trial"])
    whose = "other users than those" if values["comparison"]["on_other_users"] else "the users"
    return "\n".join([*parts, _rivals_table(values["comparison"]), f"other seeds, {whose} of the trials"])


def fusion_table(values: dict[str, Any]) -> str:
    """One line a way to find fusion's weights: what it is worth to other users, and the weights."""
    title = (
        f"{values['features']}: {len(values['checkpoints'])} trainings, {values['num_users']:,} validation users, each "
        f"judged by weights of others, {values['num_splits']} times"
    )
    terms = list(values["ways"][values["reference"]]["weights"])
    table = _table(title, "", "NDCG@10", "difference", "relative", *(term.replace("_", " ") for term in terms))
    for name, row in values["ways"].items():
        gap = row["difference"]
        weights = (f"{row['weights'][term]:.3g}" for term in terms)
        relative = f"{gap['relative']:+.2%}" if gap and gap["relative"] is not None else ""
        table.add_row(name, f"{row['ndcg@10']:.4f}", _gap(gap), relative, *weights)
    return "\n".join([_text(table, width=150), f"differences: to {values['reference']}, paired by user, 95 %"])


def _rivals_table(values: dict[str, Any]) -> str:
    """One line a rival: what it ranks alone and fused, and the differences to the reference."""
    columns = ["", "NDCG@10", "difference", "recall@10", "fused NDCG@10", "difference", "training s"]
    table = _table(_compared(values), *columns)
    for name, row in values["rivals"].items():
        gaps = row["differences"] or {}
        table.add_row(
            name,
            f"{row['ndcg@10']:.4f}",
            _gap(gaps.get("ndcg@10")),
            f"{row['recall@10']:.4f}",
            f"{row['fused_ndcg@10']:.4f}",
            _gap(gaps.get("fused_ndcg@10")),
            f"{row['training_s']:.0f}",
        )
    return "\n".join([_text(table, width=140), _paired(values)])


def histories_table(values: dict[str, Any]) -> str:
    """One line a way to read a long history: what it ranks, alone and fused, and what it costs."""
    num_longer = values["rivals"][values["reference"]]["longer_than_a_window"]["num_users"]
    columns = ["", "users", "NDCG@10", "difference", f"of the {num_longer:,} longer than a window", "fused NDCG@10"]
    columns += ["difference", "training s", "cold ms", "cold, stored ms", "one more event ms"]
    table = _table(_compared(values), *columns, "cold MFLOP", "one more event MFLOP", "session kB")
    for name, row in values["rivals"].items():
        gaps = row["differences"] or {}
        table.add_row(
            name,
            f"{row['num_users']:,}",
            f"{row['ndcg@10']:.4f}",
            _gap(gaps.get("ndcg@10")),
            _gap(row["longer_than_a_window"]["difference"]),
            f"{row['fused_ndcg@10']:.4f}",
            _gap(gaps.get("fused_ndcg@10")),
            f"{row['training_s']:.0f}",
            f"{row['cold_ms']:,.2f}",
            f"{row['cold_stored_ms']:,.2f}",
            f"{row['warm_ms']:,.2f}",
            f"{row['cold_mflop']:,.1f}",
            f"{row['warm_mflop']:,.2f}",
            f"{row['session_kb']:,.1f}",
        )
    costs = f"costs: of the same models for a history of {values['history_of_costs']:,} events, eager torch, one thread"
    lines = [_paired(values), f"{costs}, sessions in {values['cache']}"]
    if 0 < num_longer < LEAST_DIFFERENT:
        lines.append(f"longer than a window: only {num_longer} users, {LEAST_DIFFERENT} are needed for a verdict")
    return "\n".join([_text(table, width=260), *lines])


def _compared(values: dict[str, Any]) -> str:
    """What rivals were trained on."""
    seeds = f"{values['num_seeds']} seed{'' if values['num_seeds'] == 1 else 's'}"
    epochs = f" {values['epochs']:g} epochs," if "epochs" in values else ""
    return f"{values['data']}: {_size(values)},{epochs} {seeds}"


def _size(values: dict[str, Any]) -> str:
    return f"{values['num_users']:,} users, {values['num_events']:,} events, windows of {values['window']['size']:,}"


def _paired(values: dict[str, Any]) -> str:
    return f"differences: to {values['reference']}, 95 % intervals, paired by user"


def _gap(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['difference']:+.4f} ({found['low']:+.4f} … {found['high']:+.4f})"
