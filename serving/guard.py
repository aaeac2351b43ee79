"""Who may ask for what, and how often; and headers that make browsers careful. Pure ASGI."""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

from starlette.exceptions import HTTPException

from serving.config import ServeConfig, Token, TokenScope

_Scope = MutableMapping[str, Any]
_ASGI = Callable[[_Scope, Any, Any], Awaitable[None]]

_OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/openapi.json", "/console"})
"""They show nothing of users. The console asks for a token itself."""
_MAX_CLIENTS: Final = 10_000
_HINTS: Final = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}}
SAFE_HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
"""Of every answer: the server adds them itself, below all that may refuse or fail."""


class Guard:
    """Has each request's right to pass checked before its body is read."""

    def __init__(self, app: _ASGI, access: "Access") -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Pass on, or refuse; see `Arrival`.

        Raises:
            HTTPException: this client may not ask for it, or not now.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._access.refusal(scope)
        if refusal is not None:
            status, message = refusal
            raise HTTPException(status, message, _HINTS.get(status))
        await self._app(scope, receive, send)


class Access:
    """Checks the token's scope and the client's rate."""

    def __init__(self, config: ServeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = config.tokens
        self._rates = Rates(config.requests_per_s, config.burst, clock) if config.requests_per_s else None

    def refusal(self, scope: _Scope) -> tuple[int, str] | None:
        """Status and reason, or None if the request may pass; one that may is counted."""
        path = scope["path"]
        if path in _OPEN_PATHS:
            return None
        client = (scope.get("client") or ["unknown"])[0]
        wanted = _wanted(scope["method"], path)
        if self._tokens:
            token = _token_of(scope["headers"], self._tokens)
            if token is None:
                return 401, "send `Authorization: Bearer TOKEN` with a token of this server"
            if wanted not in token.scopes:
                return 403, f"this token lacks the scope {wanted}"
            client = token.name
        elif wanted == "admin":
            return 403, "admin endpoints are off without tokens; set [[serve.tokens]] in the config"
        if self._rates is not None and not self._rates.take(client):
            return 429, "too many requests; wait a little"
        return None


class Rates:
    """A token bucket per client, for a bounded number of clients."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> bool:
        """Whether one more request is within the limit."""
        now = self._clock()
        left, seen = self._buckets.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + (now - seen) * self._per_s)
        self._buckets[client] = max(left - 1, 0.0) if left >= 1 else left, now
        while len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return left >= 1


def _wanted(method: str, path: str) -> TokenScope:
    if path.startswith("/v1/admin"):
        return "admin"
    if path == "/v1/events" or (path.startswith("/v1/users/") and method != "GET"):
        return "write"
    return "read"


def _token_of(headers: Sequence[tuple[bytes, bytes]], tokens: Sequence[Token]) -> Token | None:
    """The token that was sent, if it is known. Every hash is compared, each in constant time."""
    sent = next((value for name, value in headers if name == b"authorization"), b"")
    kind, _, secret = sent.partition(b" ")
    hashed = hashlib.sha256(secret.strip()).hexdigest()
    found = None
    for token in tokens:
        if hmac.compare_digest(hashed, token.sha256):
            found = token
    return found if kind.lower() == b"bearer" else None
