"""Every route below a prefix, and none beside it."""

from __future__ import annotations

import json

import pytest

from tests.service.api.asgi import CHAT, Client, error_of, settings_of


def test_every_route_is_below_the_prefix_and_nothing_beside_it() -> None:
    with Client({"path_prefix": "/llm/a", "api_key": "k"}) as client:
        key = {"Authorization": "Bearer k"}
        assert client.get("/llm/a/health").status_code == 200
        assert client.post("/llm/a/chat/completions", CHAT, headers=key).status_code == 200
        error_of(client.post("/llm/a/chat/completions", CHAT), 401, "invalid_api_key")
        assert client.post("/llm/a/v1/messages", {}, headers=key).json()["type"] == "error"
        for path in ("/health", "/llm/ahealth", "/llm/a", "/llm", "/other/health"):
            error_of(client.get(path, headers=key), 404, "not_found")


def test_the_document_says_where_its_routes_are() -> None:
    with Client({"path_prefix": "/llm"}) as client:
        assert client.get("/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]
        assert 'href="openapi.json"' in client.get("/llm/docs").text


@pytest.mark.parametrize("prefix", ["llm", "/", "/llm/", "//", "/a b", "/a/../b?c", "/é"])
def test_a_prefix_that_is_no_path_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="path_prefix"):
        settings_of(path_prefix=prefix)


def test_the_prefix_does_not_stand_in_the_logs_path(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with Client({"path_prefix": "/llm"}) as client:
        client.post("/llm/completion", {"prompt": "abc"})
    (line,) = [record for record in caplog.records if hasattr(record, "fields")]
    assert json.loads(json.dumps(line.fields))["path"] == "/completion"
