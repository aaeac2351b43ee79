"""Answers for requests that come faster than they can be read: a labelled list, for a tenth of the work.

A server that cannot keep up must answer what it cannot serve for much less than it costs to serve, or it is late for
everybody. So while the event loop is behind, a plain request for recommendations (a user and a number, whole in
one piece, from a client that may ask) is answered where its bytes arrive: no parser, no task, no framework. All
other requests go the usual way.
"""

from typing import Any, Final, Protocol

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from recsys.contracts.events import MAX_ID_LENGTH
from serving.guard import SAFE_HEADERS

_REQUEST_LINE: Final = b"POST /v1/recommendations HTTP/1.1"
_JSON: Final = b"application/json"
_KEPT: Final = b"keep-alive"
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
_KNOWN: Final = frozenset({"user_id", "k"})
_SHEDS: Final = "shedder"
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    + b"".join(b"%s: %s\r\n" % header for header in SAFE_HEADERS)
    + b"content-length: %d\r\n\r\n"
)
_Headers = list[tuple[bytes, bytes]]


class Shedder(Protocol):
    """Who says whether to shed, and what the answer is."""

    @property
    def is_behind(self) -> bool:
        """Whether requests come faster than they are read."""
        ...

    def may_ask(self, client: Any, headers: _Headers) -> bool:
        """Whether this client may have recommendations now."""
        ...

    def shed(self, user_id: str, k: int) -> bytes:
        """The body of an answer at hand."""
        ...


class SheddingProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a look at what arrives before it is parsed; the shedder is in the lifespan's state."""

    _is_inside = False
    """Whether a message has begun and not ended."""

    def data_received(self, data: bytes) -> None:
        """Answer at once, or parse."""
        shedder: Shedder | None = self.app_state.get(_SHEDS)
        if shedder is None or not shedder.is_behind or not self._shed(shedder, data):
            super().data_received(data)

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._is_inside = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._is_inside = False
        super().on_message_complete()

    def _shed(self, shedder: Shedder, data: bytes) -> bool:
        """Whether the data was one plain request, which now is answered."""
        if self._is_inside or not (self.cycle is None or self.cycle.response_complete):
            return False
        found = plain_request(data)
        if found is None or not shedder.may_ask(self.client, found[0]):
            return False
        body = shedder.shed(found[1], found[2])
        self.transport.write(_HEAD % len(body) + body)
        self.on_response_complete()
        return True


def lifespan_state(shedder: Shedder) -> dict[str, Any]:
    """What the protocol finds the shedder by."""
    return {_SHEDS: shedder}


def plain_request(data: bytes) -> tuple[_Headers, str, int] | None:
    """(headers, user_id, k) of one whole request with nothing unusual in it, or None."""
    head, _, body = data.partition(b"\r\n\r\n")
    request_line, *lines = head.split(b"\r\n")
    if request_line != _REQUEST_LINE:
        return None
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    fields = dict(headers)
    if len(fields) < len(headers) or not fields.keys().isdisjoint(_UNUSUAL):
        return None
    if fields.get(b"connection", _KEPT).lower() != _KEPT or fields.get(b"content-type") != _JSON:
        return None
    if fields.get(b"content-length") != b"%d" % len(body):
        return None
    try:
        wish = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(wish, dict) or not wish.keys() <= _KNOWN:
        return None
    user_id, k = wish.get("user_id"), wish.get("k", 10)
    if type(user_id) is not str or not 1 <= len(user_id) <= MAX_ID_LENGTH or "\x00" in user_id or type(k) is not int:
        return None
    return (headers, user_id, k) if 1 <= k <= 100 else None
