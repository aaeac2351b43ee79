"""The load generator against a server whose answers are known, and pauses that excuse or do not."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from recsys.pipeline import load
from recsys.pipeline.load import Call
from recsys.pipeline.pauses import Pauses


class Answers(BaseHTTPRequestHandler):
    """200 with what was sent in `answer`; 500 for /broken; for /gone the connection ends."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/gone":
            self.close_connection = True
            return
        content = json.dumps(body.get("answer", {})).encode()
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100
    """Of five, the usual number, some of the connections that are opened first would each wait a second or more."""


@pytest.fixture
def port() -> Iterator[int]:
    with Server(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_answers_labels_and_errors_are_counted(port: int) -> None:
    calls = [Call("/x", {"answer": {"degraded": "deadline" if n % 4 == 0 else None}}) for n in range(20)]
    beside = [Call("/broken", {}), Call("/gone", {}), Call("/x", {"answer": {"degraded": "deadline"}})]
    done = load.run(port, calls, 400.0, beside)
    assert (len(done.latencies_ms), done.degraded, done.errors) == (20, {"deadline": 5}, 2)
    assert done.degraded_share == 0.25
    assert min(done.latencies_ms) > 0


def test_a_server_that_is_not_there_is_an_error_each(port: int) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as nobody:
        closed = nobody.server_address[1]
    done = load.run(closed, [Call("/x", {})] * 5, 400.0)
    assert (done.errors, done.latencies_ms) == (5, [])


def test_only_the_time_that_the_machine_stood_still_is_taken_off() -> None:
    pauses = Pauses([os.getpid()])
    pauses.found = [(1.0, 1.05), (2.0, 2.2)]
    assert pauses.overlap_ms(0.9, 1.04) == pytest.approx(40)
    assert pauses.overlap_ms(1.01, 2.1) == pytest.approx(40 + 100)
    assert pauses.overlap_ms(1.1, 1.9) == 0


def test_an_answer_is_late_unless_the_pause_alone_made_it_so(port: int, monkeypatch) -> None:
    for stood_still_ms, expected in ((0.0, (2, 0)), (50.0, (1, 1)), (500.0, (0, 2))):
        monkeypatch.setattr(Pauses, "overlap_ms", lambda *_, ms=stood_still_ms: ms)

        async def sent(*_):
            return [(0.0, 0.120), (0.0, 0.160), (0.0, 0.05)], load.Outcomes()

        monkeypatch.setattr(load, "_send", sent)
        done = load.run(port, [], 1.0)
        assert (done.late, done.late_in_pause) == expected
