"""report.html: what the artifact holds and what tonight brought, on one self-contained page."""

from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features import charts
from recsys.windows import WindowConfig

REPORT_FILE: Final = "report.html"
MOST_COLUMNS: Final = 183
"""Days are put together where there are more."""
MARKS: Final = (1024, 2048)
"""Lengths that are marked: the window, and the history of the case."""
_NUM_TOP_ITEMS = 12
Lengths = npt.NDArray[Any]
_STYLE = """
:root { --ink: #1c2733; --soft: #66727f; --line: #dfe4ea; --paper: #f6f7f9; --card: #fff;
  --a: #2f6fde; --b: #e0662f; --c: #2a9d73 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #96a1ae; --line: #313a45; --paper: #14181d; --card: #1c2229 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif }
main { max-width: 1400px; margin: 0 auto; padding: 28px 24px 48px }
h1 { font-size: 24px; margin: 0 }
h2 { font-size: 15px; margin: 0 0 2px }
p { margin: 0 0 10px; color: var(--soft); font-size: 13px }
.tiles { display: grid; gap: 14px; margin: 18px 0; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)) }
.cards { columns: 2 480px; column-gap: 14px }
.tiles > div, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; min-width: 0 }
section { break-inside: avoid; margin-bottom: 14px }
.tiles b { display: block; font-size: 26px; font-variant-numeric: tabular-nums }
.tiles span { color: var(--soft); font-size: 13px }
svg { width: 100%; display: block }
rect { fill: var(--a) }
rect.now { fill: var(--b) }
svg text { fill: var(--soft); font-size: 11px }
line.grid { stroke: var(--line) }
line.mark { stroke: var(--b); stroke-dasharray: 4 3 }
svg text.mark { fill: var(--b) }
polyline { fill: none; stroke-width: 2 }
.s0 { stroke: var(--a) } .s1 { stroke: var(--b) } .s2 { stroke: var(--c) }
circle.s0, svg text.s0 { fill: var(--a); stroke: none }
circle.s1, svg text.s1 { fill: var(--b); stroke: none }
circle.s2, svg text.s2 { fill: var(--c); stroke: none }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums }
td, th { padding: 3px 0 3px 10px; text-align: right; font-weight: normal; white-space: nowrap }
th:first-child { text-align: left; padding-left: 0 }
tr + tr { border-top: 1px solid var(--line) }
.bars { table-layout: fixed }
.bars th { width: 38%; overflow: hidden; text-overflow: ellipsis }
.bars td:last-child { width: 27% }
.bars i { display: block; height: 11px; border-radius: 3px; background: var(--a) }
"""


def write(
    folder: Path,
    metrics: dict[str, Any],
    steps: list[dict[str, Any]],
    before: dict[str, Any],
    items: pl.DataFrame,
    users: pl.DataFrame,
    days: pl.DataFrame,
) -> None:
    """Write the page of tonight's artifact; `before` are the metrics of last night's, or empty."""
    lengths = users["num_events"].to_numpy()
    sections = (
        []
        if users.is_empty()
        else [
            _events_per_day(days, metrics),
            _history_lengths(lengths),
            _top_items(items),
            _against_last_night(metrics, before),
            _pruning(metrics),
            _windows_per_user(lengths),
            _set_aside(metrics),
            _time_and_memory(steps),
        ]
    )
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Features report</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head><body><main>"
        f"<h1>Features report</h1><p>{escape(_subtitle(metrics))}</p>{_tiles(metrics)}"
        f"<div class='cards'>{''.join(sections)}</div></main></body></html>\n"
    )
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")


def _subtitle(metrics: dict[str, Any]) -> str:
    mode = "added to last night's" if metrics["why_full"] is None else f"full build: {metrics['why_full']}"
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {mode} · content {metrics['content_digest'][:12]}"


def _tiles(metrics: dict[str, Any]) -> str:
    tonight, bad = metrics["tonight"], sum(metrics["quarantined"].values())
    tiles = [
        (f"{metrics['num_events']:,}", f"events, {tonight['num_events']:,} of them tonight"),
        (f"{metrics['num_users']:,}", "users"),
        (f"{metrics['num_items_kept']:,}", f"items kept of {metrics['num_items']:,}"),
        (f"{len(metrics['source_files']):,}", f"files, {tonight['num_files']:,} new tonight"),
        (f"{bad:,}", f"rows in quarantine of {metrics['num_rows_read']:,} read"),
    ]
    return (
        f"<div class='tiles'>{''.join(f'<div><b>{n}</b><span>{escape(text)}</span></div>' for n, text in tiles)}</div>"
    )


def _section(name: str, title: str, note: str, body: str) -> str:
    return f"<section id='{name}'><h2>{escape(title)}</h2><p>{escape(note)}</p>{body}</section>"


def _events_per_day(days: pl.DataFrame, metrics: dict[str, Any]) -> str:
    if not metrics["has_timestamps"]:
        return _section("days", "Events per day", "The log has no times.", "")
    day = days["day"].to_numpy()
    width = -(-(int(day.max()) - int(day.min()) + 1) // MOST_COLUMNS)
    counts = np.bincount((day - day.min()) // width, weights=days["num_events"].to_numpy())
    dates = [datetime.fromtimestamp((int(day.min()) + i * width) * 86_400, UTC) for i in range(len(counts))]
    tips = [f"{date:%Y-%m-%d}: {count:,.0f}" for date, count in zip(dates, counts, strict=True)]
    labels = [((i + 0.5) / len(counts), f"{dates[i]:%d %b %Y}") for i in _spread(len(counts))]
    note = "One bar a day, UTC" if width == 1 else f"One bar for {width} days, UTC"
    chart = charts.columns(counts.tolist(), tips, labels, highlight=len(counts) - 1)
    return _section("days", "Events per day", f"{note}; the last one in orange.", chart)


def _spread(count: int) -> list[int]:
    """Up to four positions that are far enough apart to be labelled."""
    return sorted({round((count - 1) * share) for share in (0.06, 0.35, 0.65, 0.94)})


def _history_lengths(lengths: Lengths) -> str:
    """A histogram with two bins to every doubling, as far as whole numbers allow."""
    top = max(12, int(np.ceil(np.log2(lengths.max() + 1))))
    edges = np.unique(np.ceil(2 ** (np.arange(2 * top + 1) / 2)).astype(np.int64))
    counts = np.histogram(lengths, edges)[0]
    tips = [
        f"{low:,} to {high - 1:,} events: {n:,} users" for low, high, n in zip(edges, edges[1:], counts, strict=False)
    ]
    place = {int(edge): i for i, edge in enumerate(edges)}
    marks = [(place[n] / len(counts), f"{n:,}") for n in MARKS]
    labels = [((place[2**k] + 0.5) / len(counts), f"{2**k:,}") for k in range(0, top, 2)]
    over = ", ".join(f"{int((lengths > n).sum()):,} over {n:,}" for n in MARKS)
    middle = f"median {np.median(lengths):,.0f}, longest {lengths.max():,}"
    chart = charts.columns(counts.tolist(), tips, labels, marks=marks)
    return _section("lengths", "History lengths", f"Users by events in their history: {middle}; {over}.", chart)


def _pruning(metrics: dict[str, Any]) -> str:
    rows = metrics["pruning"]["thresholds"]
    labels = [f"{row['min_count']:,}" for row in rows]
    series: dict[str, list[float]] = {
        "items pruned": [1 - row["num_items_kept"] / max(1, metrics["num_items"]) for row in rows],
        "events lost": [row["events_lost"] for row in rows],
        "users lost": [row["users_lost"] for row in rows],
    }
    chosen = [row["min_count"] for row in rows].index(metrics["pruning"]["min_count"])
    looked = metrics["pruning"]["users_looked_at"]
    note = f"By minimum count; the setting in force is dashed. Users lost have no kept event ({looked} looked at)."
    cells = "".join(
        f"<tr><th>{row['min_count']:,}</th><td>{row['num_items_kept']:,}</td><td>{row['events_lost']:.2%}</td>"
        f"<td>{row['users_lost']:.2%}</td></tr>"
        for row in rows
    )
    head = "<tr><th>minimum</th><td>items kept</td><td>events lost</td><td>users lost</td></tr>"
    chart = charts.lines(series, labels, marked=chosen)
    return _section("pruning", "What pruning costs", note, f"{chart}<table>{head}{cells}</table>")


def _windows_per_user(lengths: Lengths) -> str:
    config = WindowConfig()
    beyond = np.maximum(0, lengths.astype(np.int64) - config.size)
    windows = 1 + -(-beyond // config.stride)
    counts = np.bincount(np.minimum(windows, 12), minlength=6)[1:]
    rows = []
    for i, count in enumerate(counts, start=1):
        name = f"{i} window{'s' if i > 1 else ''}" + (" or more" if i == 12 else "")
        rows.append((name, float(np.log1p(count)), f"{count:,} users"))
    size = f"{config.size:,} events, one every {config.stride:,}"
    note = f"Windows of {size}: {int(windows.sum()):,} in all, of all events before pruning. Bars on a log scale."
    return _section("windows", "Windows per user", note, charts.bars(rows))


def _top_items(items: pl.DataFrame) -> str:
    top = items.sort("num_events", descending=True).head(_NUM_TOP_ITEMS)
    total = max(1, int(items["num_events"].sum()))
    rows = [
        (f"{item_id} {title or ''}", float(count), f"{count:,}  ({count / total:.2%})")
        for item_id, title, count in top.select("item_id", "title", "num_events").iter_rows()
    ]
    return _section("items", "Top items", "By events, with their share of all events.", charts.bars(rows))


def _set_aside(metrics: dict[str, Any]) -> str:
    bad = sorted(metrics["quarantined"].items(), key=lambda pair: -pair[1])
    ruled = sorted(metrics["excluded"].items(), key=lambda pair: -pair[1])
    body = charts.bars([(reason, float(n), f"{n:,}") for reason, n in bad]) if bad else "<p>No bad row.</p>"
    if ruled:
        body += "<p style='margin-top:14px'>Left out by rule:</p>" + charts.bars(
            [(r, float(n), f"{n:,}") for r, n in ruled]
        )
    return _section("quarantine", "Quarantine by reason", "Rows in quarantine.csv, all nights together.", body)


def _time_and_memory(steps: list[dict[str, Any]]) -> str:
    rows = [(s["step"], s["seconds"], f"{s['seconds']:.2f} s · peak {s['peak_mb']:,.0f} MB") for s in steps]
    note = f"{sum(s['seconds'] for s in steps):.2f} s so far; the peak is that of the process up to the step's end."
    return _section("steps", "Time and memory by step", note, charts.bars(rows))


def _against_last_night(metrics: dict[str, Any], before: dict[str, Any]) -> str:
    if not before:
        return _section("against", "Tonight against last night", "There is no artifact of last night.", "")
    rows = []
    for name in ("num_rows_read", "num_events", "num_users", "num_items", "num_items_kept"):
        old, new = int(before.get(name, 0)), int(metrics[name])
        change = f"{(new - old) / old:+.2%}" if old else ""
        words = name.removeprefix("num_").replace("_", " ")
        rows.append(
            f"<tr><th>{words}</th><td>{old:,}</td><td>{new:,}</td><td>{new - old:+,}</td><td>{change}</td></tr>"
        )
    head = "<tr><th></th><td>last night</td><td>tonight</td><td>change</td><td></td></tr>"
    return _section(
        "against", "Tonight against last night", "Totals of both artifacts.", f"<table>{head}{''.join(rows)}</table>"
    )
