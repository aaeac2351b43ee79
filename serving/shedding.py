"""Answers for requests that come faster than they can be read: a labelled list, for a tenth of the work.

A server that cannot keep up must answer what it cannot serve for much less than it costs to serve, or it is late for
everybody. So while the event loop is behind, a request for recommendations (well-formed, not large, from a client that
may ask) is answered where its bytes arrive: no parser, no task, no framework. All other requests go the usual way.

They are answered some at a time, each step for all of them before the next: one after the other, each costs twice as
much (`docs/benchmarks.md`).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from pydantic import ValidationError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.guard import SAFE_HEADERS
from serving.lag import LoopLag
from serving.schemas import RecommendationRequest

logger = logging.getLogger(__name__)

_REQUEST_LINE: Final = b"POST /v1/recommendations HTTP/1.1"
_JSON: Final = b"application/json"
_KEPT: Final = b"keep-alive"
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
_MAX_BODY_BYTES: Final = 16_384
"""Larger ones take too long to be read on the way."""
_MOST_DIGITS: Final = len(str(_MAX_BODY_BYTES))
_MAX_HELD_BYTES: Final = 4 * _MAX_BODY_BYTES
"""Of a client who goes on sending while its message waits for a turn; more is parsed at once."""
_SHEDS: Final = "shedder"
_TURN_S: Final = 0.004
"""After so long no more are shed in one turn of the event loop."""
_MOST_TOGETHER: Final = 16
"""Messages at a time, if the turn has time for them."""
_EACH_S: Final = 0.001
"""What a message is expected to take before any was measured."""
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    + b"".join(b"%s: %s\r\n" % header for header in SAFE_HEADERS)
    + b"content-length: %d\r\n\r\n"
)
_Headers = list[tuple[bytes, bytes]]
_A = TypeVar("_A")
_B = TypeVar("_B")


class Turns:
    """Messages that wait to be shed, some in each turn of the event loop.

    In a turn the loop does all that is ready. If it shed all messages that have come, the model's answers, which are
    ready as well, would wait for the end of it, and many came late.
    """

    def __init__(self, shedder: "Shedder", lag: LoopLag, clock: Callable[[], float] = time.monotonic) -> None:
        """`lag` is told how long messages wait for their turn."""
        self._shedder = shedder
        self.lag = lag
        self._clock = clock
        self._waiting: deque[tuple[Message, float]] = deque()
        """With the moment after which it came."""
        self._is_coming = False
        """Whether the loop is to come back here."""
        self._each_s = _EACH_S
        """What each of the latest took: with a million items and a filter, a hundred times as much as else."""

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, message: "Message") -> None:
        """Answer it when those that came before have had their turn."""
        self._waiting.append((message, self.lag.seen_since))
        self.lag.backlog_since = self._waiting[0][1]
        self._come_back()

    def _come_back(self) -> None:
        if self._waiting and not self._is_coming:
            self._is_coming = True
            asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        self._is_coming = False
        started, until = (now := self._clock()), now + _TURN_S
        while self._waiting and started < until:
            num = max(1, min(_MOST_TOGETHER, len(self._waiting), int((until - started) / self._each_s)))
            self._answer([self._waiting.popleft() for _ in range(num)])
            started, before = self._clock(), started
            self._each_s = max(1e-6, (started - before) / num)
        self.lag.backlog_since = self._waiting[0][1] if self._waiting else None
        self._come_back()

    def _answer(self, messages: "Sequence[tuple[Message, float]]") -> None:
        read = [(message, _tried(message, message.read, since), since) for message, since in messages]
        asked = [(message, request, since) for message, request, since in read if request is not None]
        answers = self._shed([request for _, request, _ in asked], [since for _, _, since in asked])
        for (message, _, since), answer in zip(asked, answers, strict=True):
            if answer is None:
                _tried(message, message.pass_on, since)
            else:
                _tried(message, message.answer, answer)

    def _shed(self, requests: Sequence[RecommendationRequest], since: Sequence[float]) -> list[bytes | None]:
        """None for those whose answer fails, which may not be that of others."""
        try:
            return [*self._shedder.shed(requests, since)]
        except Exception:
            if len(requests) > 1:
                return [answer for one in zip(requests, since, strict=True) for answer in self._shed(one[:1], one[1:])]
            logger.exception("not shed")
            return [None]


def _tried(message: "Message", step: Callable[[_A], _B], argument: _A) -> _B | None:
    """What the step finds. If it fails, the connection ends, so that nobody waits for what does not come."""
    try:
        return step(argument)
    except Exception:
        logger.exception("not answered")
        message.drop()
        return None


class Message(Protocol):
    """What has come on a connection, as far as it is known."""

    def read(self, since: float) -> RecommendationRequest | None:
        """The request, if it is one that may be answered here. Anything else that is whole has gone the usual way."""
        ...

    def answer(self, content: bytes) -> None:
        """Send this to who asks."""
        ...

    def pass_on(self, since: float) -> None:
        """It goes the usual way if it has no answer yet; it came after that moment."""
        ...

    def drop(self) -> None:
        """End the connection."""
        ...


class Shedder(Protocol):
    """Who says whether to shed, and what the answer is."""

    turns: Turns

    def is_behind(self, num_under_way: int) -> bool:
        """Whether requests come faster than they are read or answered; so many are under way."""
        ...

    def may_ask(self, client: Any, headers: _Headers) -> bool:
        """Whether this client may have recommendations now."""
        ...

    def shed(self, requests: Sequence[RecommendationRequest], since: Sequence[float]) -> list[bytes]:
        """The bodies of answers at hand to requests that came after these moments."""
        ...


class SheddingProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a look at what arrives before it is parsed; the shedder is in the lifespan's state."""

    _is_inside = False
    """Whether a message has begun and not ended."""
    _held = b""
    """The beginning of a message whose rest is still to come: clients may send head and body one after the other."""
    _is_waiting = False
    """Whether what is held waits for its turn."""
    _shedder: Shedder
    """Known while it waits."""

    def data_received(self, data: bytes) -> None:
        """Parse, or wait for a turn to be answered; the rest of a message is parsed where its beginning was."""
        shedder: Shedder | None = self.app_state.get(_SHEDS)
        self._held += data
        if self._is_waiting and len(self._held) <= _MAX_HELD_BYTES:
            return
        is_rest = self._is_waiting or self._is_inside
        if shedder is None or is_rest or not (len(shedder.turns) or shedder.is_behind(len(self.tasks))):
            self._go_on()
        else:
            self._is_waiting = True
            self._shedder = shedder
            shedder.turns.wait(self)

    def shutdown(self) -> None:
        """Called when the server is to end: what has come is answered first."""
        if self._held:
            self._go_on()
        super().shutdown()

    def read(self, since: float) -> RecommendationRequest | None:
        """See `Message`. The beginning of a message stays held."""
        if not self._is_waiting or self.transport.is_closing():
            return None
        self._is_waiting = False
        is_free = not self._is_inside and (self.cycle is None or self.cycle.response_complete)
        found = usual_head(self._held) if is_free else None
        if found is not None:
            headers, body, length = found
            if len(body) < length:
                return None
            with suppress(ValidationError):
                request = RecommendationRequest.model_validate_json(body)
                if self._shedder.may_ask(self.client, headers):
                    return request
        self.pass_on(since)
        return None

    def answer(self, content: bytes) -> None:
        """See `Message`."""
        self._held = b""
        self.transport.write(_HEAD % len(content) + content)
        self.on_response_complete()

    def pass_on(self, since: float) -> None:
        """See `Message`."""
        if self._held and not self.transport.is_closing():
            with self._shedder.turns.lag.waited_since(since):
                self._go_on()

    def drop(self) -> None:
        """See `Message`."""
        self.transport.close()

    def _go_on(self) -> None:
        self._is_waiting = False
        data, self._held = self._held, b""
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._is_inside = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._is_inside = False
        super().on_message_complete()


def lifespan_state(shedder: Shedder) -> dict[str, Any]:
    """What the protocol finds the shedder by."""
    return {_SHEDS: shedder}


def usual_head(data: bytes) -> tuple[_Headers, bytes, int] | None:
    """(headers, body so far, its whole length) of a request for recommendations; None if anything is unusual."""
    head, end, body = data.partition(b"\r\n\r\n")
    request_line, *lines = head.split(b"\r\n")
    if not end or request_line != _REQUEST_LINE:
        return None
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    fields = dict(headers)
    if len(fields) < len(headers) or not fields.keys().isdisjoint(_UNUSUAL):
        return None
    kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()  # clients may name the charset
    if fields.get(b"connection", _KEPT).lower() != _KEPT or kind != _JSON:
        return None
    declared = fields.get(b"content-length", b"")
    length = int(declared) if declared.isdigit() and len(declared) <= _MOST_DIGITS else 0
    return (headers, body, length) if 0 < length <= _MAX_BODY_BYTES and len(body) <= length else None
