"""Lines that wait, are bounded, and are all there at the end."""

import io
import logging
import threading

from serving import log


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("serving", logging.INFO, "", 0, text, None, None)


def test_what_was_logged_is_written_when_it_closes() -> None:
    stream = io.StringIO()
    handler = log.BufferedHandler(stream)
    for n in range(3):
        handler.emit(record(f"line {n}"))
    handler.close()
    assert stream.getvalue() == "line 0\nline 1\nline 2\n"


def test_a_reader_that_stalls_holds_nobody_up_and_what_was_lost_is_said(monkeypatch) -> None:
    monkeypatch.setattr(log, "_MAX_WAITING", 2)
    go_on, writing, written = threading.Event(), threading.Event(), []

    class Stalled(io.StringIO):
        def write(self, text: str) -> int:
            writing.set()
            go_on.wait(30)
            written.append(text)
            return len(text)

    handler = log.BufferedHandler(Stalled())
    handler.emit(record("first"))
    assert writing.wait(30)
    for n in range(5):  # returns at once, though nothing can be written
        handler.emit(record(f"line {n}"))
    go_on.set()
    handler.close()
    assert "".join(written) == "first\nline 0\nline 1\n3 log lines were lost\n"
