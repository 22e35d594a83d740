"""uvicorn's h11 protocol with what it lacks: deadlines for peers that send or read too slowly, a limit on headers that
never end, and refusals in this API's shape.

uvicorn never times out a request that is still arriving, and waits for one even while shutting down; httptools, which
it prefers where it is installed, limits no header. Both were measured; the idea of guarding the protocol class is
Xinference's. Knows no routes: `app` answers whatever is complete.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from service.api.errors import ApiError, too_large

logger = logging.getLogger(__name__)


class GuardedProtocol(H11Protocol):
    """One connection. `peer_timeout_s`: seconds a peer has to send a whole request, counted from its first byte (or
    from connecting), and to take what was written for it."""

    peer_timeout_s: ClassVar[float] = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        # Writing counts as paused as soon as the kernel takes no more, so that the deadline below sees every byte. Not
        # 0: asyncio's TLS transport would then pause with nothing to write, and never go on.
        transport.set_write_buffer_limits(high=1)
        self._receive_timer = self.loop.call_later(self.peer_timeout_s, self._receive_deadline)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_receive_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Every change of what has arrived passes through here, pipelined requests included."""
        super().handle_events()
        if not self.is_receiving:
            self._stop_receive_timer()
        elif self._receive_timer is None and not self.transport.is_closing():
            self._receive_timer = self.loop.call_later(self.peer_timeout_s, self._receive_deadline)

    @property
    def is_receiving(self) -> bool:
        """A request has begun to arrive and is not complete."""
        if self.conn.their_state is h11.IDLE:
            return bool(self.conn.trailing_data[0])
        return self.conn.their_state is h11.SEND_BODY

    def _stop_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _receive_deadline(self) -> None:
        self._receive_timer = None
        logger.info("closing a connection: its request was not complete after %g s", self.peer_timeout_s)
        if self.is_receiving:
            seconds = f"{self.peer_timeout_s:g}"
            message = f"the request was not complete after {seconds} seconds"
            self._refuse(ApiError(408, "invalid_request_error", "request_timeout", message))
        else:
            self.transport.close()

    def _should_upgrade(self) -> bool:
        """No other protocol is spoken here; the request is served as it stands, and costs no warning."""
        return False

    def send_400_response(self, msg: str) -> None:
        """Called where uvicorn has caught the parser's error, which alone knows the status."""
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refuse(too_large(431, "the request header is too large or does not end"))
        else:
            self._refuse(ApiError(400, "invalid_request_error", "invalid_request", msg.rstrip(".").lower()))

    def _refuse(self, error: ApiError) -> None:
        """Answer in place of the application, where nothing has been answered yet, and close."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # what the application still sends goes nowhere
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            start = h11.Response(status_code=error.status, headers=headers, reason=STATUS_PHRASES[error.status])
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    # ------------------------------------------------------------------ sending

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(self.peer_timeout_s, self._send_deadline)

    def resume_writing(self) -> None:
        self._stop_send_timer()
        super().resume_writing()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _send_deadline(self) -> None:
        logger.info("closing a connection: its peer has read nothing for %g s", self.peer_timeout_s)
        self.transport.abort()

    def cut(self) -> None:
        """Close at once, whatever is under way."""
        self.transport.abort()


def guarded_protocol(timeout_s: float) -> type[GuardedProtocol]:
    """The protocol class with this peer timeout, for uvicorn's `http` setting, which takes a class."""

    class Protocol(GuardedProtocol):
        peer_timeout_s = timeout_s

    return Protocol
