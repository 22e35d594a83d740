"""Who may ask: the Host header, the origin of a page, the key, and how long a request's header may be.

Pure ASGI layers, each of them off unless its setting says otherwise. Decisions look at `scope["path"]`, never at a URL
rebuilt from the Host header. Knows nothing of bodies.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import ApiError, invalid_parameter, too_large

OPEN_PATHS = frozenset({"/", "/health", "/v1/health", "/health/live", "/health/ready"})


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    scope["state"]["record"].code = error.code
    await error.response(scope["path"])(scope, receive, send)


class PathPrefix:
    """404 for what is not below the prefix; what is, goes on without it, in the record's line too. (A proxy that takes
    its prefix off by itself needs nothing: no answer of ours holds an address.)"""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not scope["path"].startswith(self.prefix + "/"):
                error = ApiError(404, "not_found_error", "not_found", "there is no such route")
                await _refuse(error, scope, receive, send)
                return
            scope["path"] = scope["path"].removeprefix(self.prefix)
        await self.app(scope, receive, send)


class HeaderRules:
    """431 for a header that is complete and too large (the protocol class stops those that never end), 400 for one that
    gives the body's length in two ways, as request smuggling does."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            names = {name for name, _ in scope["headers"]}
            if _header_bytes(scope) > self.max_bytes:
                error = too_large(431, f"the request header exceeds the limit of {self.max_bytes} bytes")
                await _refuse(error, scope, receive, send)
                return
            if {b"content-length", b"transfer-encoding"} <= names:
                message = "a request may not have both Content-Length and Transfer-Encoding"
                close = {"Connection": "close"}
                error = ApiError(400, "invalid_request_error", "invalid_request", message, headers=close)
                await _refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)


def _header_bytes(scope: Scope) -> int:
    target = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    return target + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


class AllowedHosts:
    """400 for a Host header that is not on the list: what keeps a rebound DNS name away. `*.name` matches below it."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app = app
        self.hosts = [host.lower() for host in hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allows(Headers(scope=scope).get("host", "")):
            error = invalid_parameter("Host", "this server does not answer to the name in the Host header")
            await _refuse(error, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allows(self, header: str) -> bool:
        name = header.lower()
        name = name[: name.find("]") + 1] if name.startswith("[") else name.partition(":")[0]
        return any(host in ("*", name) or (host.startswith("*.") and name.endswith(host[1:])) for host in self.hosts)


class Cors:
    """Lets pages of the listed origins (`*`: any) read the answers; preflights are answered here, without a key."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self.app = app
        self.origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin", "")
        if not origin or not self.origins & {origin, "*"}:
            await self.app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await self._preflight(origin, headers)(scope, receive, send)
            return

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                allowed = MutableHeaders(scope=message)
                allowed["Access-Control-Allow-Origin"] = origin
                allowed["Access-Control-Expose-Headers"] = "X-Request-Id, Retry-After"
                allowed.add_vary_header("Origin")
            await send(message)

        await self.app(scope, receive, send_allowed)

    @staticmethod
    def _preflight(origin: str, headers: Headers) -> Response:
        allowed = {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "GET, POST",
            # A literal `*` would not cover Authorization.
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "*"),
            "Access-Control-Max-Age": "600",
            "Vary": "Origin",
        }
        return Response(status_code=204, headers=allowed)


class ApiKey:
    """401 for every request without the key, as Bearer or X-Api-Key; the health routes and the web page stay open."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self.digest = _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._admits(scope):
            message = "invalid or missing API key: send 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'"
            challenge = {"WWW-Authenticate": "Bearer"}
            error = ApiError(401, "authentication_error", "invalid_api_key", message, headers=challenge)
            await _refuse(error, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"x-api-key" and self._is_key(value):
                return True
            if name == b"authorization":
                scheme, _, key = value.partition(b" ")
                if scheme.lower() == b"bearer" and self._is_key(key.strip()):
                    return True
        return False

    def _is_key(self, offered: bytes) -> bool:
        # Hashes have one length, so that the comparison tells nothing of the key's.
        return hmac.compare_digest(_digest(offered), self.digest)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
