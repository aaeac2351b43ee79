"""The outermost layer: when a request arrived, how large it may be and in which form. Pure ASGI."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from starlette.exceptions import HTTPException

from serving.lag import LoopLag
from serving.problems import refusal

_Scope = MutableMapping[str, Any]
_ASGI = Callable[[_Scope, Any, Any], Awaitable[None]]

MAX_BODY_BYTES: Final = {
    "/v1/recommendations": 500_000,
    "/v1/recommendations:batch": 1_000_000,
    "/v1/events": 1_000_000,
    "/v1/admin/": 8_000_000,
    "/": 64_000,
}
"""By path, or how it begins, the first that fits. While a body is read into objects, nobody is answered."""


class Arrival:
    """Notes when the request can have come at the earliest; refuses a body that is too large before reading it."""

    def __init__(self, app: _ASGI, lag: LoopLag) -> None:
        self._app = app
        self._lag = lag

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Pass on, with the moment in the request's state."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["arrived"] = time.monotonic() - self._lag.seconds
        headers = dict(scope["headers"])
        most = _most_bytes(scope["path"])
        declared = int(headers.get(b"content-length", b"0"))  # the server has checked that it is a number
        try:
            if declared > most:
                raise _too_large(most)
            has_body = declared or b"transfer-encoding" in headers
            if has_body and not _is_json(headers.get(b"content-type", b"")):
                raise HTTPException(415, "send the body as JSON, with `Content-Type: application/json`")
            await self._app(scope, _counted(receive, most), send)
        except HTTPException as error:  # what is raised above the framework's own handlers
            await refusal(error)(scope, receive, send)


def _most_bytes(path: str) -> int:
    return next(most for start, most in MAX_BODY_BYTES.items() if path == start or _is_below(path, start))


def _is_below(path: str, start: str) -> bool:
    return start.endswith("/") and path.startswith(start)


def _is_json(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() == b"application/json"


def _counted(receive: Any, most: int) -> Callable[[], Awaitable[Any]]:
    """`receive` that raises once too much has come, for bodies that do not declare their length."""
    received = 0

    async def counting() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise _too_large(most)
        return message

    return counting


def _too_large(most: int) -> HTTPException:
    """The rest of the body is not read: the connection is of no more use."""
    return HTTPException(413, f"more than {most:,} bytes; send less at once", {"connection": "close"})
