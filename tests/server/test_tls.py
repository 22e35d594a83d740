"""HTTPS from the server itself: a certificate made for the test, streams and guards as over plain sockets."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from service.api.app import create_app
from service.engine.async_engine import AsyncEngine, Loaded
from service.server import ListenError, check_tls, run
from tests.server.live import Live, read_all, request_bytes
from tests.service.api.asgi import CHAT, events_of, settings_of


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    command = ["openssl", "req", "-x509", *curve, *subject, "-days", "2", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_answers_and_streams_come_over_tls(pair: tuple[Path, Path]) -> None:
    certificate, key = pair
    with Live({"tls_certfile": str(certificate), "tls_keyfile": str(key), "receive_timeout_s": 0.5}) as live:
        assert live.server.url == live.url.replace("http:", "https:")
        trust = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=live.server.url, verify=trust) as client:
            assert client.get("/health").json() == {"status": "ok"}
            events = events_of(client.post("/chat/completions", json={**CHAT, "stream": True}).text)
            assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "hello there"
        with live.connect() as plain, trust.wrap_socket(plain, server_hostname="127.0.0.1") as slow:
            slow.sendall(request_bytes("/completion", b"{}")[:-1])
            assert read_all(slow).startswith(b"HTTP/1.1 408")
        with live.connect() as plain:
            plain.sendall(request_bytes("/completion", b'{"prompt": "a"}'))
            assert b"HTTP" not in read_all(plain)
        live.at_rest()


def test_a_certificate_that_cannot_be_used_is_one_clear_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = pair
    check_tls(str(certificate), str(key))
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    check_tls(str(both), None)
    for wrong in ((str(tmp_path / "none.pem"), str(key)), (str(certificate), None), (str(key), str(key))):
        with pytest.raises(ListenError, match="cannot use the certificate") as caught:
            check_tls(*wrong)
        assert "\n" not in str(caught.value)


def test_a_key_without_a_certificate_ends_the_start_before_anything_is_loaded(pair: tuple[Path, Path]) -> None:
    settings, engine = settings_of(port=0, tls_keyfile=str(pair[1])), AsyncEngine()

    def load() -> Loaded:
        raise AssertionError("it was loaded")

    with pytest.raises(ListenError, match="tls_keyfile"):
        run(create_app(engine, settings), engine, settings, load)
