"""The examples of the API reference, word for word but for the port, against a running server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.server.live import Live

PYTHON = """\
import requests

response = requests.post(
    "http://localhost:8081/chat/completions",
    json={
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_tokens": 50
    }
)
print(response.json()["choices"][0]["message"]["content"])
"""

STREAMING_PYTHON = """\
import requests
import json

response = requests.post(
    "http://localhost:8081/chat/completions",
    json={"messages": [{"role": "user", "content": "Hello!"}], "stream": True},
    stream=True
)

for line in response.iter_lines():
    if line and line.startswith(b'data: '):
        data = line[6:]
        if data != b'[DONE]':
            chunk = json.loads(data)
            print(chunk['choices'][0]['delta'].get('content', ''), end='')
"""

JAVASCRIPT = """\
const response = await fetch('http://localhost:8081/chat/completions', {
  method: 'POST',
  headers: {'Content-Type': 'application/json'},
  body: JSON.stringify({
    messages: [{role: 'user', content: 'Hello!'}],
    max_tokens: 50
  })
});
const data = await response.json();
console.log(data.choices[0].message.content);
"""

CURL = """\
curl -X POST http://localhost:8081/chat/completions \\
  -H "Content-Type: application/json" \\
  -d '{
    "messages": [{"role": "user", "content": "Count to 5"}],
    "stream": true
  }'
"""

CHAT_REQUEST = """\
{
  "messages": [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is BitNet?"}
  ],
  "temperature": 0.7,
  "max_tokens": 100,
  "stream": false
}
"""

COMPLETION_REQUEST = """\
{
  "prompt": "The capital of France is",
  "n_predict": 50,
  "temperature": 0.7,
  "top_k": 40,
  "top_p": 0.95
}
"""


def output_of(live: Live, command: list[str], example: str) -> str:
    assert "8081" in example
    full = [*command, example.replace("8081", str(live.port))]
    return subprocess.run(full, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_python_example(live: Live) -> None:
    assert output_of(live, [sys.executable, "-c"], PYTHON) == "Hello!\n"


def test_the_streaming_python_example(live: Live) -> None:
    assert output_of(live, [sys.executable, "-c"], STREAMING_PYTHON) == "Hello!"


def test_the_streaming_python_example_reads_the_native_route_too(live: Live) -> None:
    example = STREAMING_PYTHON.replace("/chat/completions", "/completion")
    example = example.replace('"messages": [{"role": "user", "content": "Hello!"}]', '"prompt": "Hello!"')
    assert output_of(live, [sys.executable, "-c"], example) == "Hello!"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed on this machine")
def test_the_javascript_example(live: Live) -> None:
    assert output_of(live, ["node", "--input-type=module", "-e"], JAVASCRIPT) == "Hello!\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")
def test_the_curl_example(live: Live) -> None:
    output = output_of(live, ["bash", "-c"], CURL)
    frames = output.removesuffix("\n\n").split("\n\n")
    assert frames[-1] == "data: [DONE]"
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Count to 5"


def test_the_chat_request_and_its_answer(live: Live) -> None:
    answer = live.post("/chat/completions", json.loads(CHAT_REQUEST)).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "What is BitNet?"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]


def test_the_completion_request_is_served_by_each_route_of_the_text_kind(live: Live) -> None:
    body = json.loads(COMPLETION_REQUEST)
    assert live.post("/completion", body).json()["content"] == body["prompt"]
    assert live.post("/completions", body).json()["content"] == body["prompt"]
    assert live.post("/v1/completions", body).json()["choices"][0]["text"] == body["prompt"]
