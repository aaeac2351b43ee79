"""Tables as plain text, and cells that several of them have."""

import io
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def as_text(table: Table, width: int = 110) -> str:
    """The table as plain text, in a width that fits a terminal and a README unless another is given."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined,no-any-return]


def new_table(title: str, *columns: str) -> Table:
    """Without rows yet; the first column is of words, the others are of figures."""
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def relative(row: dict[str, Any]) -> str:
    """A relative difference with its interval, where there is one."""
    if row["relative_low"] is None:
        return ""
    return f", relative {row['relative']:+.2%} [{row['relative_low']:+.2%}, {row['relative_high']:+.2%}]"


def gap(found: dict[str, Any] | None) -> str:
    """A paired difference with its interval; nothing of the reference itself."""
    return "" if found is None else f"{found['difference']:+.4f} ({found['low']:+.4f} … {found['high']:+.4f})"


def paired(reference: str) -> str:
    """What differences in a table are."""
    return f"differences: to {reference}, 95 % intervals, paired by user"


def trials_text(trials: list[dict[str, Any]], title: str, width: int) -> str:
    """All settings and figures but the seconds."""
    short = {"num_layers": "layers", "learning_rate": "rate", "weight_decay": "decay", "num_negatives": "negatives"}
    short |= {"gbce_negatives": "negatives", "gbce_calibration": "t", "is_averaged": "averaged"}
    short |= {"fused_ndcg@10": "fused NDCG@10", "ndcg@10": "NDCG@10"}
    columns = [name for name in trials[0] if name != "seconds"]
    table = new_table(title, *(short.get(name, name) for name in columns))
    for row in trials:
        table.add_row(*(setting(name, row[name]) for name in columns))
    return as_text(table, width)


def setting(name: str, value: Any) -> str:
    """A setting or figure of a trial."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if "ndcg" in name else f"{value:.3g}"
    return "" if value is None else str(value)
