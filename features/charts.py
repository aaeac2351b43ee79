"""Small charts as inline SVG: no scripts, no fonts, nothing from elsewhere."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 14, 30
Mark = tuple[float, str]
"""A vertical line: position as a share of the width, and its label."""


def short(value: float) -> str:
    """A number in four characters or so: 1.2k, 34M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def columns(
    values: Sequence[float],
    tips: Sequence[str],
    labels: Sequence[Mark],
    *,
    marks: Sequence[Mark] = (),
    highlight: int | None = None,
) -> str:
    """Vertical bars with a tip each; `labels` stand below, at shares of the width."""
    top = max(values, default=0) or 1
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    gap = min(2.0, step * 0.2)
    parts = [_frame(top)]
    for i, (value, tip) in enumerate(zip(values, tips, strict=True)):
        height = (HEIGHT - _TOP - _BOTTOM) * value / top
        shape = f'x="{_LEFT + i * step:.2f}" y="{HEIGHT - _BOTTOM - height:.2f}" width="{step - gap:.2f}"'
        kind = ' class="now"' if i == highlight else ""
        parts.append(f'<rect{kind} {shape} height="{height:.2f}"><title>{escape(tip)}</title></rect>')
    parts += [_label(share, text) for share, text in labels]
    for share, text in marks:
        x = _x(share)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text class="mark" x="{x - 4:.1f}" y="{_TOP + 10}" text-anchor="end">{escape(text)}</text>')
    return _svg(parts)


def lines(series: Mapping[str, Sequence[float]], labels: Sequence[str], *, marked: int | None = None) -> str:
    """Curves of shares between 0 and the largest, one point a label, with a legend."""
    top = max((max(values) for values in series.values()), default=0) or 1
    shares = [(i + 0.5) / len(labels) for i in range(len(labels))]
    parts = [_frame(top, percent=True)]
    if marked is not None:
        x = _x(shares[marked])
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    for number, (name, values) in enumerate(series.items()):
        points = [
            (_x(share), HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / top)
            for share, value in zip(shares, values, strict=True)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="s{number}" points="{path}"/>')
        for (x, y), label, value in zip(points, labels, values, strict=True):
            tip = f"{name} at {label}: {value:.2%}"
            place = f'cx="{x:.1f}" cy="{y:.1f}" r="3"'
            parts.append(f'<circle class="s{number}" {place}><title>{escape(tip)}</title></circle>')
        legend = f'x="{_LEFT + 14}" y="{_TOP + 12 + 16 * number}"'
        parts.append(f'<text class="s{number}" {legend}>● {escape(name)}</text>')
    parts += [_label(share, text) for share, text in zip(shares, labels, strict=True)]
    return _svg(parts)


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars, one a row: name, value, and what stands behind it."""
    top = max((value for _, value, _ in rows), default=0) or 1
    cells = [
        f"<tr><th>{escape(name)}</th><td><i style='width:{100 * value / top:.1f}%'></i></td>"
        f"<td>{escape(text)}</td></tr>"
        for name, value, text in rows
    ]
    return f"<table class='bars'>{''.join(cells)}</table>"


def _x(share: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * share


def _label(share: float, text: str) -> str:
    return f'<text x="{_x(share):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(text)}</text>'


def _frame(top: float, *, percent: bool = False) -> str:
    rows = []
    for share in (0.0, 0.5, 1.0):
        y = HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share
        text = f"{top * share:.3g}" if not percent else f"{top * share:.1%}"
        text = text if percent else short(top * share)
        rows.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        rows.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    return "".join(rows)


def _svg(parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
