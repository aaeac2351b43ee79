"""report.html"""

from pathlib import Path
from typing import Any


def write(folder: Path, metrics: Any, steps: Any, before: Any, items: Any, users: Any, days: Any) -> None:
    (folder / "report.html").write_text("")
