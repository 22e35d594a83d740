"""A small client of our own API on the standard library: JSON answers, and streams as they come.

One connection for each request, closed when the caller stops reading; the server then ends the generation. Knows no
shapes beyond the error object.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 10.0
Json = dict[str, Any]


class ServerError(Exception):
    """The server cannot be reached, refused, or broke off; the message is one line with a hint. `code`: its own."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server: its address, perhaps with a path prefix, and the key it asks for."""

    url: str
    key: str | None = None

    def get(self, path: str) -> Json:
        """The JSON of a GET. Raises ServerError."""
        connection, response = self._send("GET", path, None)
        try:
            return _object(response.read())
        except OSError as error:
            raise ServerError(f"{self.url} broke off: {error}") from None
        finally:
            connection.close()

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Json]:
        """The events of a streamed POST. Raises ServerError, also for an error event and for an end without [DONE]."""
        connection, response = self._send("POST", path, json.dumps({**body, "stream": True}).encode())
        try:
            for line in response:
                if line == b"data: [DONE]\n":
                    return
                if line.startswith(b"data: "):
                    event = _object(line[6:])
                    if "error" in event:
                        raise ServerError(str(event["error"]["message"]), str(event["error"]["code"]))
                    yield event
            raise ServerError("the server closed the connection before the answer was complete")
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.url} broke off: {error}") from None
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        parts = urlsplit(self.url if "://" in self.url else f"http://{self.url}")
        connection = _connection(parts.scheme, parts.netloc)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.connect()
            connection.sock.settimeout(None)  # a long prompt takes its time before the first byte
            connection.request(method, parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ServerError(f"{self.url} cannot be reached ({error}): is `bitnet serve` running there?") from None
        if response.status != 200:
            refusal = _refusal(self.url, response)
            connection.close()
            raise refusal
        return connection, response


def _connection(scheme: str, netloc: str) -> http.client.HTTPConnection:
    try:
        if scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(netloc, timeout=CONNECT_TIMEOUT_S, context=context)
        if scheme == "http" and netloc:
            return http.client.HTTPConnection(netloc, timeout=CONNECT_TIMEOUT_S)
    except http.client.InvalidURL:
        pass
    raise ServerError(f"{scheme}://{netloc} is no address of a server: write http://host:port")


def _refusal(url: str, response: http.client.HTTPResponse) -> ServerError:
    try:
        error = json.loads(response.read())["error"]
        message, code = str(error["message"]), str(error["code"])
    except (OSError, ValueError, KeyError, TypeError):
        return ServerError(f"{url} answered {response.status} {response.reason}: is it a bitnet server?")
    hint = ": pass --api-key" if response.status == 401 else ""
    return ServerError(f"{message}{hint}", code)


def _object(raw: bytes) -> Json:
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerError("the server sent something that is no JSON object: is it a bitnet server?")
    return value
