"""Work that is under way in a pool before it is asked for."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")


def one_ahead(items: Iterator[T], pool: Executor) -> Iterator[T]:
    """The same items, the next one under way while this one is used; none is None."""
    coming = pool.submit(next, items, None)
    while (item := coming.result()) is not None:
        coming = pool.submit(next, items, None)
        yield item


def files_ahead(files: Iterable[Iterator[T]], pool: Executor, num_files: int) -> Iterator[Iterator[T]]:
    """The same items, file by file, the next one of this file and the first of the next files under way.

    So many files are open at a time; no item is None. The pool is the caller's to close: a generator that an error
    leaves behind is closed by the garbage collector, in any thread and at any moment, and must not wait for threads
    there.
    """
    opened: deque[tuple[Iterator[T], Future[T | None]]] = deque()

    def items() -> Iterator[T]:
        file, coming = opened.popleft()
        while (item := coming.result()) is not None:
            coming = pool.submit(next, file, None)
            yield item

    for file in files:
        opened.append((file, pool.submit(next, file, None)))
        if len(opened) == num_files:
            yield items()
    while opened:
        yield items()
