"""What the benchmarks of speed, memory and cost print."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recsys.pipeline import case_report
from recsys.pipeline.plain_text import as_text, gap, new_table, paired, relative
from recsys.pipeline.tables import looks_line

if TYPE_CHECKING:  # the feature job's must not wait for torch
    from recsys.model.flops import EncodeCost


def nights_table(values: dict[str, Any]) -> str:
    """A row a night, both ways, and the paired difference."""
    from recsys.pipeline.nightly_benchmark import SCRATCH, STARTED

    ways = (SCRATCH, STARTED)
    title = f"{values['num_nights_compared']} of {values['num_days']} nights compared, NDCG@10 of the next day"
    columns = [f"{what}, {way}" for what in ("NDCG@10", "processor s", "epochs") for way in ways]
    table = new_table(title, "day", "users", *columns)
    for night in values["nights"]:
        ndcgs = [f"{night['ndcg@10'][way]:.4f}" if way in night["ndcg@10"] else "" for way in ways]
        costs = [f"{night[key][way]:.1f}" if way in night[key] else "" for key in ("seconds", "epochs") for way in ways]
        table.add_row(night["date"], f"{night['num_users']:,}", *ndcgs, *costs)
    lines = [as_text(table)]
    if "difference" in values:
        d, ways_apart = values["difference"], f"{STARTED} minus {SCRATCH}"
        lines.append(
            f"{ways_apart}: {d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]{relative(d)}; "
            f"{values['num_user_nights']:,} users of a day, resampled by user: {d['num_users']:,} different ones"
        )
        spent = (
            f"{way} {values['seconds_per_night'][way]:,.0f} ({values['seconds'][way]:,.0f} in all)" for way in ways
        )
        lines.append(f"processor seconds of training a night: {', '.join(spent)}")
    return "\n".join([*lines, looks_line(values)])


def windows_table(context: int, costs: Sequence["EncodeCost"]) -> str:
    """FLOPs by window setting, as shares of the first row."""
    table = new_table(
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
    return as_text(table)


def figures_table(values: dict[str, Any]) -> str:
    """Figures by name, one a line."""
    table = new_table("", "figure", "value")
    for name, value in values.items():
        table.add_row(name, json.dumps(value))
    return as_text(table)


def features_cost_table(values: dict[str, Any]) -> str:
    """The feature job's figures, and where its time goes."""
    table = new_table(f"{values['events']:,} simulated events", "figure", "value")
    names = ["seconds", "peak_gib", "events_per_second", "floor_events", "floor_ratio", "floor_peak_gib"]
    names += ["rectools_events", "rectools_ratio", "rectools_csv_ratio"]
    for name in (*names, "one_day_seconds", "one_day_share", "growth_10x"):
        table.add_row(name, "–" if values[name] is None else f"{values[name]:,}")
    for title, steps in (("full build", values["steps"]), ("one more day", values["one_day_steps"])):
        for step in steps:
            table.add_row(f"{title}: {step['step']}", f"{step['seconds']:.2f} s")
    return as_text(table)


def case_summary(values: dict[str, Any]) -> str:
    """Latency by step, then the figures beside those to beat: an A100 with TensorRT."""
    latency = values["latency_ms"]
    steps = new_table("one user, median", "switched on", "ms", "times faster than before", "peak MB")
    switched_on = case_report.words(values["window"])
    for name, words in switched_on.items():
        peak_mb = values["memory"][name]["peak_mb"]
        steps.add_row(words, f"{latency[name]:.2f}", f"{latency['before'] / latency[name]:.1f}", f"{peak_mb:.0f}")
    figures = new_table("after against before", "figure", "value", "to beat")
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
    causes = new_table("NDCG@10 by cause", "switched on", "change", "at least", "at most")
    for name, one in values["accuracy_by_cause"].items():
        causes.add_row(switched_on[name], f"{one['change']:+.2%}", f"{one['low']:+.2%}", f"{one['high']:+.2%}")
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in values["users_per_second"].items())
    arithmetic = ", ".join(f"{name} {of}" for name, of in values["arithmetic"].items())
    kept = values["memory"]["cache"]
    sessions = f"{kept['num_sessions']} users kept in {values['cache']}, {kept['sessions_mb']:.1f} MB of the peak"
    return (
        f"{as_text(steps)}\nsessions: {sessions}\narithmetic: {arithmetic}\n\n"
        f"{as_text(figures)}\n\n{as_text(causes)}\n\n"
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
    from recsys.pipeline.heads_benchmark import SAME_SPEED

    kept = dict.fromkeys(f"{row['precision']}, {row['cache']} sessions" for row in values["rows"])
    title = f"inner width {values['inner_width']}, {values['num_threads']} threads; {' | '.join(kept)}"
    rows = new_table(title, "heads x head_dim", "open ms", "append ms", "NDCG@10", "difference", "epochs", "frontier")
    for row in values["rows"]:
        rows.add_row(
            f"{row['num_heads']} x {row['head_dim']}",
            f"{row['open_ms']:.2f}",
            f"{row['append_ms']:.2f}",
            f"{row['validation_ndcg@10']:.4f}" + ("" if row["spread"] is None else f" ± {row['spread']:.4f}"),
            gap(row["difference"]),
            f"{row['epochs']:.1f}",
            "yes" if row["on_frontier"] else "",
        )
    seeds = "1 training" if values["num_seeds"] == 1 else f"{values['num_seeds']} trainings"
    lines = [f"{seeds} of a shape, validation users by weights of fusion that were found on others"]
    if any(row["difference"] for row in values["rows"]):
        own = f"the recipe's {values['own_heads']} heads"
        lines.append(f"{paired(own)}; other seeds may differ by more")
    found = values["found_heads"]
    whose = ", the recipe's own" if found == values["own_heads"] else ""
    lines.append(f"found: {found} heads{whose}" if found else "found: nothing, each shape is beaten")
    lines.append(
        f"one beats another that is no better otherwise: by {SAME_SPEED - 1:.0%} of a window's time or more, or by an "
        "interval of accuracy above 0"
    )
    return "\n".join([as_text(rows), *lines])


def engine_table(values: dict[str, Any]) -> str:
    """Open and append by length and batch; what of a GPU they use, where there is one."""
    names = {"MB": "gpu_memory_mb", "SMs": "sm_share", "tensor cores": "tensor_share"}
    used = names if any("sm_share" in row for row in values["rows"]) else {}
    rows = new_table(
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
        f"{as_text(rows)}\na session of a full window keeps {values['session_bytes']:,} bytes\n"
        f"windows of {seen['num_lengths']:,} lengths: {seen['new_ms']:.2f} ms each the first time, "
        f"{seen['again_ms']:.2f} again; the process grew by {seen['grown_mb']:.1f} MB"
    )
