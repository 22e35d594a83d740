"""`bitnet chat`: a conversation in the terminal, with a model of this machine or a server elsewhere.

A local model is served inside this process and asked over loopback, so both go the same way. Ctrl-C stops the answer,
a second one at the prompt leaves. With standard input from a file or pipe, each line is a message and nothing else than
the answers goes to standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from service.commands.client import Endpoint, ServerError
from service.commands.exits import EXIT_CONFIG, fail, known_errors
from service.commands.options import ConfigOption, ModelArgument, SetOption, settings_of

HELP = """\
/help               this list
/new                begin a new conversation
/again              answer the last message again
/undo               take back the last message and its answer
/system [TEXT]      show or change the system prompt; begins a new conversation
/set [NAME VALUE]   show or change a sampling parameter, as temperature 0.2; without VALUE the server's default
/save FILE          write the conversation as JSON lines
/quit               leave (also Ctrl-D)
A line that ends in a backslash goes on in the next."""


@dataclass(slots=True)
class Conversation:
    """What was said, and how it is to go on."""

    system: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": [*system, *self.turns], "stream_options": {"include_usage": True}, **self.fields}


def chat(
    model: ModelArgument = None,
    url: Annotated[str | None, typer.Option(help="a server to talk to, instead of a model of this machine")] = None,
    api_key: Annotated[str | None, typer.Option(help="key of that server (or BITNET_API_KEY)")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="ask this one thing and leave")] = None,
    system: Annotated[str, typer.Option(help="system prompt")] = "",
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token")] = None,
    top_p: Annotated[float | None, typer.Option(help="nucleus sampling")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 = off")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="most tokens of an answer")] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same answer")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Talk with MODEL, or with a server (--url)."""
    wishes = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens, "seed": seed}
    conversation = Conversation(system, {name: value for name, value in wishes.items() if value is not None})
    if url is not None and model is not None:
        fail("MODEL and --url exclude each other: a server chose its model already", EXIT_CONFIG)
    with known_errors(), _endpoint(model, url, api_key, config, set_) as endpoint:
        if message is not None:
            _say(endpoint, conversation, message)
        else:
            Session(endpoint, conversation).run()


@contextmanager
def _endpoint(
    model: str | None, url: str | None, api_key: str | None, config: Path | None, given: list[str] | None
) -> Iterator[Endpoint]:
    settings = settings_of(model, config, given)
    if url is not None:
        key = settings.api_key.get_secret_value() if settings.api_key is not None else None
        yield Endpoint(url, api_key or key)
        return
    from service.commands.local_server import inside
    from service.logs import set_up_logs

    set_up_logs("text", "warning")
    with inside(settings) as endpoint:
        yield endpoint


def _say(endpoint: Endpoint, conversation: Conversation, text: str) -> None:
    """Ask, print the answer as it comes, and keep both. What was said before Ctrl-C or an error stays said."""
    conversation.turns.append({"role": "user", "content": text})
    said: list[str] = []
    try:
        figures = _stream(endpoint, conversation.body(), said.append)
    except ServerError:
        if not said:
            conversation.turns.pop()
        raise
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
        if said:
            conversation.turns.append({"role": "assistant", "content": "".join(said)})
    Console(stderr=True).print(figures, style="dim", highlight=False)


def _stream(endpoint: Endpoint, body: dict[str, Any], on_text: Callable[[str], None]) -> str:
    """Print the answer; its figures in one line."""
    began = time.perf_counter()
    first_s: float | None = None
    tokens, rate, end = 0, 0.0, ""
    for event in endpoint.stream("/v1/chat/completions", body):
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                first_s = first_s or time.perf_counter() - began
                on_text(text)
                sys.stdout.write(text)
                sys.stdout.flush()
            end = choice["finish_reason"] or end
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        rate = (event.get("timings") or {}).get("predicted_per_second", rate)
    pieces = [f"{tokens} tokens", f"{rate:.1f} tok/s", f"first token {first_s or 0:.2f} s"]
    return " · ".join([*pieces, "reached its limit"] if end == "length" else pieces)


class Session:
    """The prompt, over and over; on a terminal with a banner, history and commands that begin with a slash."""

    def __init__(self, endpoint: Endpoint, conversation: Conversation) -> None:
        self.endpoint = endpoint
        self.conversation = conversation
        self.is_terminal = sys.stdin.isatty()
        self.console = Console(stderr=not self.is_terminal, highlight=False)

    def run(self) -> None:
        model = self.endpoint.get("/v1/models")["data"][0]["id"]
        if self.is_terminal:
            import readline  # noqa: F401 - importing it gives input() a history and its editing keys

            self.console.print(
                f"[bold]{escape(model)}[/] [dim]- /help for commands, Ctrl-C stops an answer, Ctrl-D leaves[/]"
            )
        while True:
            try:
                text = self._read()
            except (EOFError, KeyboardInterrupt):
                return
            if not text:
                continue
            if text.startswith("/"):
                if self._command(*text[1:].split(None, 1)) == "quit":
                    return
            else:
                self._ask(text)

    def _read(self) -> str:
        lines = [input("> " if self.is_terminal else "")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("  " if self.is_terminal else ""))
        return "\n".join(lines).strip()

    def _ask(self, text: str) -> None:
        try:
            _say(self.endpoint, self.conversation, text)
        except KeyboardInterrupt:
            self.console.print("stopped", style="dim")
        except ServerError as error:
            if not self.is_terminal:
                raise
            self.console.print(f"error: {error}", style="red", markup=False)

    def _command(self, name: str = "", rest: str = "") -> str | None:
        conversation = self.conversation
        match name:
            case "quit" | "exit" | "bye":
                return "quit"
            case "new" | "clear":
                conversation.turns.clear()
            case "undo":
                self._take_back()
            case "again":
                if text := self._take_back():
                    self._ask(text)
            case "system" if rest:
                conversation.system = rest
                conversation.turns.clear()
            case "system":
                self._note(conversation.system or "no system prompt")
            case "set":
                self._set(*rest.split(None, 1))
            case "save" if rest:
                self._save(Path(rest).expanduser())
            case _:
                self._note(HELP)
        return None

    def _take_back(self) -> str:
        """Forget the last message and its answer; the message."""
        turns = self.conversation.turns
        while turns:
            if (turn := turns.pop())["role"] == "user":
                return turn["content"]
        return ""

    def _set(self, name: str = "", value: str = "") -> None:
        fields = self.conversation.fields
        if not name:
            self._note("\n".join(f"{key} {fields[key]}" for key in sorted(fields)) or "the server's defaults")
        elif not value:
            fields.pop(name, None)
        else:
            try:
                fields[name] = int(value) if value.lstrip("-").isdecimal() else float(value)
            except ValueError:
                self._note(f"{value} is no number")

    def _save(self, path: Path) -> None:
        import json

        try:
            path.write_text("".join(json.dumps(turn, ensure_ascii=False) + "\n" for turn in self.conversation.turns))
        except OSError as error:
            self._note(f"cannot write {path}: {error.strerror}")

    def _note(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False)
