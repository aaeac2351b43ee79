"""Progress on standard error, where that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function (step, done, total) that moves a bar."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, object] = {}

        def advance(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(f"{title}: {step}", total=total)
            progress.update(tasks[step], completed=done, total=total)  # type: ignore[arg-type]

        yield advance
