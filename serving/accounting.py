"""One line in the log and one count for each request, whatever became of it. Pure ASGI."""

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from serving.log import fields
from serving.metrics import Metrics
from serving.schemas import PATH

logger = logging.getLogger(__name__)

_Scope = MutableMapping[str, Any]
_ASGI = Callable[[_Scope, Any, Any], Awaitable[None]]

_ANSWERS: Final = frozenset({PATH, f"{PATH}:batch"})
"""Routes whose answers have lines of their own, one for each recommendation."""
_PLAIN: Final = _ANSWERS | {"/v1/events"}
"""Paths that are their own template, for requests which are refused before they are routed."""
_NO_ROUTE: Final = "none"
_ITEMS: Final = "/v1/items/"


@dataclass(slots=True)
class Others:
    """Requests under way that need no worker of those who ask what users will want next."""

    count: int = 0


class Accounting:
    """Notes method, route, status and time. The route is the template: ids in paths are nobody's to read."""

    def __init__(self, app: _ASGI, metrics: Metrics, others: Others) -> None:
        """`others` is kept up to date."""
        self._app = app
        self._metrics = metrics
        self._others = others

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Pass on, then note."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, is_noted = time.monotonic(), False

        async def noting(message: Any) -> None:
            nonlocal is_noted
            if message["type"] == "http.response.start":
                is_noted = True
                self._note(scope, message["status"], started)  # before the client can ask what was noted
            await send(message)

        is_other = scope["path"] not in _ANSWERS and not scope["path"].startswith(_ITEMS)
        self._others.count += is_other
        try:
            await self._app(scope, receive, noting)
        finally:
            self._others.count -= is_other
            if not is_noted:
                self._note(scope, 500, started)  # the server's answer where the application has none

    def _note(self, scope: _Scope, status: int, started: float) -> None:
        route = _template(scope)
        self._metrics.count_request(scope["method"], route, status)
        if status == 200 and route in _ANSWERS:
            return
        state = scope.get("state", {})
        took_ms = (time.monotonic() - state.get("arrived", started)) * 1000
        line = {"method": scope["method"], "route": route, "status": status, "ms": round(took_ms, 3)}
        logger.info("request", extra=fields(**line, **state.get("of_answer", {})))


def _template(scope: _Scope) -> str:
    route = scope.get("route")
    if route is not None:
        return str(getattr(route, "path_format", _NO_ROUTE))
    return scope["path"] if scope["path"] in _PLAIN else _NO_ROUTE
