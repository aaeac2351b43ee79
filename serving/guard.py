"""Who may ask for what, and how often; and headers that make browsers careful. Pure ASGI."""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Final

from starlette.exceptions import HTTPException

from serving.config import ServeConfig, Token, TokenScope

_Scope = MutableMapping[str, Any]
_ASGI = Callable[[_Scope, Any, Any], Awaitable[None]]

_OWN_NAMES: Final = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
_OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/openapi.json", "/console"})
"""They show nothing of users. The console asks for a token itself."""
_MAX_CLIENTS: Final = 10_000
_HINTS: Final = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}}
_TOO_MANY: Final = (429, "too many requests; wait a little")
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
        self._proxies = config.proxies
        self._rates = Rates(config.requests_per_s, config.burst, clock) if config.requests_per_s else None

    def refusal(self, scope: _Scope) -> tuple[int, str] | None:
        """Status and reason, or None if the request may pass; one that may is counted."""
        path = scope["path"]
        if path in _OPEN_PATHS:
            return None
        wanted, token = _wanted(scope["method"], path), _token_of(scope["headers"], self._tokens)
        client = self._client(scope) if token is None else token.name
        if token is None and self._tokens:
            if not self._may_go_on(f"stranger {client}"):
                return _TOO_MANY
            return 401, "send `Authorization: Bearer TOKEN` with a token of this server"
        if token is not None and wanted not in token.scopes:
            return 403, f"this token lacks the scope {wanted}"
        if token is None and wanted == "admin":
            return 403, "admin endpoints are off without tokens; set [[serve.tokens]] in the config"
        if token is None and _host(scope["headers"]) not in _OWN_NAMES:  # a page whose own name now leads here
            return 403, "without tokens only localhost is answered; set [[serve.tokens]] in the config"
        scope["recsys.client"] = client
        return None if self._may_go_on(client) else _TOO_MANY

    def also(self, scope: _Scope, num_requests: int) -> None:
        """Count more requests that came inside this one.

        Raises:
            HTTPException: they are more than the client may send now.
        """
        if not self._may_go_on(scope["recsys.client"], num_requests):
            raise HTTPException(*_TOO_MANY, _HINTS[429])

    def _client(self, scope: _Scope) -> str:
        return client_address((scope.get("client") or ["unknown"])[0], scope["headers"], self._proxies)

    def _may_go_on(self, client: str, num_requests: int = 1) -> bool:
        return self._rates is None or self._rates.take(client, num_requests)


class Rates:
    """A token bucket per client, for a bounded number of clients."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, num: int = 1) -> bool:
        """Whether so many more requests are within the limit; if not, none is counted."""
        now = self._clock()
        left, seen = self._buckets.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + (now - seen) * self._per_s)
        self._buckets[client] = left - num if left >= num else left, now
        while len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return left >= num


def _host(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Of the `Host` header, without the port."""
    host = next((value for name, value in headers if name == b"host"), b"").lower()
    return host if host.endswith(b"]") else host.rpartition(b":")[0] or host


def client_address(
    peer: str, headers: Sequence[tuple[bytes, bytes]], proxies: Sequence[IPv4Network | IPv6Network]
) -> str:
    """The address that asks: the connection's, or where that is a proxy, the one that the proxy was asked by.

    Every proxy appends to `X-Forwarded-For`, so it is read from its end up to the first address that is no proxy's;
    what stands before that is the client's own word.
    """
    client = peer
    told = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1")
    for before in reversed(told.split(",")):
        if not _is_one_of(client, proxies):
            break
        client = before.strip() or client
    return client


def _is_one_of(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    try:
        return any(ip_address(address) in network for network in networks)
    except ValueError:
        return False


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
