"""Lines that wait, are bounded, can be read by machines, and are all there at the end."""

import io
import json
import logging
import sys
import threading
from types import SimpleNamespace

import pytest

from serving import handy, log
from serving.schemas import RecommendationRequest


def record(text: str, *arguments: object, **of_record: object) -> logging.LogRecord:
    made = logging.LogRecord("serving", logging.INFO, "", 0, text, arguments, None)
    vars(made).update(of_record)
    return made


def lines(written: bytes) -> list[dict]:
    return [json.loads(line) for line in written.splitlines() if line]


def shown(written: bytes) -> list[tuple]:
    """Message and count of each line."""
    return [(line["message"], line.get("num_lost")) for line in lines(written)]


def num_lost() -> float:
    return log.lost_lines.collect()[0].samples[0].value


def test_what_was_logged_is_written_when_it_closes() -> None:
    stream = io.BytesIO()
    handler = log.BufferedHandler(stream)
    for n in range(3):
        handler.emit(record(f"line {n}"))
    handler.close()
    assert shown(stream.getvalue()) == [("line 0", None), ("line 1", None), ("line 2", None)]


def test_a_line_is_one_json_object_whatever_it_says() -> None:
    extra = log.fields(timings_ms={"total": 1.5}, odd=object, lone="\ud800")
    line = log.JsonLines().format(record("two\nlines \u2028 %s", "x", created=0.25, **extra))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250+00:00", "level": "info", "logger": "serving", "message": "two\nlines \u2028 x",
        "timings_ms": {"total": 1.5}, "odd": "<class 'object'>", "lone": "\ud800",
    }  # fmt: skip


def test_an_exception_is_a_field_of_its_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        line = log.JsonLines().format(record("failed", exc_info=sys.exc_info()))
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_a_reader_that_stalls_holds_nobody_up_and_what_was_lost_is_said(monkeypatch) -> None:
    monkeypatch.setattr(log, "_MAX_WAITING", 2)
    go_on, writing, written = threading.Event(), threading.Event(), []

    class Stalled(io.BytesIO):
        def write(self, data: bytes) -> int:
            writing.set()
            go_on.wait(30)
            written.append(data)
            return len(data)

    handler = log.BufferedHandler(Stalled())
    handler.emit(record("first"))
    assert writing.wait(30)
    for n in range(5):  # returns at once, though nothing can be written
        handler.emit(record(f"line {n}"))
    go_on.set()
    handler.close()
    found = [("first", None), ("line 0", None), ("line 1", None), ("log lines were lost", 3)]
    assert shown(b"".join(written)) == found


class Disk(io.BytesIO):
    """Has room for so many bytes."""

    room = 0

    def write(self, data) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        taken = super().write(bytes(data[: self.room]))
        self.room -= taken
        return taken


LENGTH = 100
"""Of a line of the next test, without its end."""


@pytest.mark.parametrize(
    ("room", "num_whole"),
    [
        (0, 0),
        (5, 0),
        (LENGTH - 1, 0),
        (LENGTH, 1),
        (LENGTH + 1, 1),
        (LENGTH + 2, 1),
        (3 * LENGTH + 1, 2),
        (3 * LENGTH + 2, 3),
    ],
)
def test_after_a_full_disk_the_log_goes_on_and_says_how_many_lines_were_lost(room: int, num_whole: int) -> None:
    disk, before = Disk(), num_lost()
    handler = log.BufferedHandler(disk)
    handler.close()  # its thread has ended: this test writes when it wants to
    assert len(handler.format(record("line 0"))) == LENGTH
    disk.room = room
    for n in range(3):
        handler.emit(record(f"line {n}"))
    handler._write()
    disk.room = 10_000
    handler.emit(record("later"))
    handler._write()
    whole = [json.loads(line) for line in disk.getvalue().splitlines() if line.endswith(b"}")]  # torn ones do not
    said = [("log lines were lost", 3 - num_whole)] if num_whole < 3 else []
    assert [(line["message"], line.get("num_lost")) for line in whole] == [
        *((f"line {n}", None) for n in range(num_whole)), ("later", None), *said,
    ]  # fmt: skip
    assert num_lost() - before == 3 - num_whole


def test_a_line_that_cannot_be_made_is_counted_and_the_others_written() -> None:
    before, stream = num_lost(), io.BytesIO()
    handler = log.BufferedHandler(stream)
    handler.emit(record("%d items", "many"))
    handler.emit(record("later"))
    handler.close()
    assert shown(stream.getvalue()) == [("later", None), ("log lines were lost", 1)]
    assert num_lost() == before + 1


def test_a_record_may_stand_for_several_lines_that_differ_in_some_fields() -> None:
    extra = log.lines([{"request_id": "a", "timings_ms": {"total": 1.5}}, {"request_id": "b"}], release="r\u00e9")
    first, second = log.JsonLines().format(record("answer", **extra)).split("\n")
    assert first.isascii()
    assert json.loads(first)["timings_ms"] == {"total": 1.5}
    assert [(each["message"], each["release"], each["request_id"]) for each in map(json.loads, (first, second))] == [
        ("answer", "r\u00e9", "a"), ("answer", "r\u00e9", "b"),
    ]  # fmt: skip


def test_lines_are_what_is_bounded_and_counted_however_many_a_record_stands_for(monkeypatch) -> None:
    monkeypatch.setattr(log, "_MAX_WAITING", 5)
    monkeypatch.setattr(log, "_EVERY_S", 30)
    before, stream = num_lost(), io.BytesIO()
    handler = log.BufferedHandler(stream)
    many = log.lines([{"n": n} for n in range(3)])
    for _ in range(2):
        handler.emit(record("answer", **many))
    handler.emit(record("one"))
    handler.emit(record("%d broken", "not a number", **log.lines([{}])))
    assert num_lost() == before + 3  # the second three
    handler.close()
    assert [line["message"] for line in lines(stream.getvalue())] == ["answer"] * 3 + ["one", "log lines were lost"]
    assert lines(stream.getvalue())[-1]["num_lost"] == 4
    assert handler._num_waiting == 0


def test_each_answer_that_is_shed_has_a_line_of_its_own(shop, monkeypatch, caplog) -> None:
    timers = []

    class Loop:
        def call_later(self, delay_s: float, work) -> None:
            timers.append((delay_s, work))

    def shed(**wishes) -> str:
        request = RecommendationRequest(user_id="very-private", k=2, **wishes)
        (answer,) = shop.endpoint.shed([request], [0.0])
        return json.loads(answer)["request_id"]

    monkeypatch.setattr(handy, "asyncio", SimpleNamespace(get_running_loop=Loop))  # the server's own loop goes on
    with caplog.at_level(logging.INFO, logger="serving.handy"):
        plain, none = [shed() for _ in range(3)], shed(filters={"category": ["none such"]})
        ((delay_s, say),) = timers
        say()
        last = shed()
        shop.endpoint.service.handy.say()  # as the endpoint does when it closes
        for _, work in timers[1:]:
            work()
    assert delay_s == 0.1
    written = "\n".join(map(log.JsonLines().format, caplog.records))
    assert "very-private" not in written
    line = {"message": "answer", "level": "info", "logger": "serving.handy", "release": "r1", "arm": "all",
            "source": "popular", "degraded": "overload"}  # fmt: skip
    found = [json.loads(each) for each in written.splitlines()]
    assert [each.pop("request_id") for each in found] == [*plain, none, last]
    reasons = [each.pop("reason") for each in found]
    assert reasons == [None, None, None, "no_items_match", None]
    for each in found:
        assert each.pop("timings_ms")["total"] >= 0
        del each["time"]
        assert each == line
