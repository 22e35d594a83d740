"""Text into token ids and back, for one checkpoint: tokenizer.json by the tokenizers library, and its chat template.

Special-token text is parsed as special in a prompt and is plain text in a message. The tokens that the tokenizer's
post-processor puts before a text (BOS, where it has one) come first exactly once, also when a template or a prompt
already begins with them; what it puts behind a text is left out, since the model is to go on.

Knows no lengths, no requests and no HTTP. No torch, no transformers. Safe to use from several threads at once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from service.engine.control_tokens import AliasedTokenizer, Guard
from service.engine.errors import RequestError
from service.engine.prompt import Message
from service.engine.template import ChatTemplate, TemplateSourceError, find_template
from service.engine.token_bytes import UnknownDecoderError, spell_vocabulary
from service.engine.tool_messages import in_words
from service.engine.tools import Tool

MAX_TOKENIZER_BYTES = 256 * 2**20
MAX_CONFIG_BYTES = 16 * 2**20
UTF8_CONTINUATION = bytes(range(0x80, 0xC0))
# How models spell the end of a turn; where one of these is an added token, it ends a generation.
END_OF_TURN = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|eot|>",
    "<end_of_utterance>",
)
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerError(ValueError):
    """The checkpoint's tokenizer or chat template cannot be used; the message says which file and why."""


class Tokenizer:
    """One checkpoint's tokenizer.

    vocab_size      ids are below this: the model's, or the tokenizer's own where no model's was given
    eos_ids         every id that ends a generation
    bos_id          the id that a text starts with, None if there is none
    max_token_chars characters of the longest token: n tokens never spell more than n times this many. (A normalizer
                    that shortens text, which these families do not have, would let n tokens stand for more.)
    """

    def __init__(
        self,
        backend: Backend,
        *,
        eos_ids: frozenset[int],
        template: ChatTemplate | None = None,
        vocab_size: int | None = None,
        special_tokens: Mapping[str, str] = {},
    ) -> None:
        """Raises TokenizerError for a vocabulary larger than the model's, or one of an unknown kind."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template = template
        self._special_tokens = dict(special_tokens)
        added = backend.get_added_tokens_decoder()
        vocab = backend.get_vocab(with_added_tokens=True)
        own_size = max(vocab.values(), default=-1) + 1
        self.vocab_size = own_size if vocab_size is None else vocab_size
        if own_size > self.vocab_size:
            raise TokenizerError(f"tokenizer.json has ids up to {own_size - 1}, the model has {vocab_size} embeddings")
        self.eos_ids = eos_ids | {id_ for id_, token in added.items() if token.content in END_OF_TURN}
        self._bytes = self._spell(backend, vocab)
        for token_id, token in added.items():
            is_control = token.special or token_id in self.eos_ids
            self._bytes[token_id] = b"" if is_control else token.content.encode()
        longest_special = max((len(token.content) for token in added.values()), default=0)
        self.max_token_chars = max(1, longest_special, *map(_num_chars, self._bytes))
        self._prefix = self._find_prefix(backend)
        self.bos_id = self._prefix[0] if self._prefix else None
        self._control_ids = {
            token.content: token_id
            for token_id, token in added.items()
            if token.special or token_id in self.eos_ids or self._template_writes(token.content)
        }
        self._control_spellings = {id_: token.content.encode() for id_, token in added.items()}
        self._guard = Guard(list(self._control_ids))
        self._aliased: AliasedTokenizer | None = None
        self._aliased_lock = threading.Lock()

    @staticmethod
    def from_folder(folder: Path, eos_token_ids: Sequence[int] = (), *, vocab_size: int | None = None) -> Tokenizer:
        """Read a checkpoint's tokenizer. eos_token_ids: those of config.json and generation_config.json.

        vocab_size: the model's, which the tokenizer must fit into. Raises TokenizerError.
        """
        _refuse_large(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
        try:
            with _faults():
                backend = Backend.from_file(str(folder / "tokenizer.json"))
        except RequestError as error:
            raise TokenizerError(f"tokenizer.json cannot be read: {error}") from None
        config = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
        special = {name: text for name in SPECIAL_NAMES if (text := _token_text(config.get(name))) is not None}
        try:
            source = find_template(folder, config)
            template = None if source is None else ChatTemplate(source, special)
        except TemplateSourceError as error:
            raise TokenizerError(str(error)) from None
        own_eos = backend.token_to_id(special.get("eos_token", ""))
        eos_ids = frozenset(eos_token_ids) | (frozenset() if own_eos is None else {own_eos})
        return Tokenizer(backend, eos_ids=eos_ids, template=template, vocab_size=vocab_size, special_tokens=special)

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """The ids of a conversation, up to where the model shall answer. Raises RequestError."""
        messages, tools = self._in_its_words(messages, tools)
        protected, guard = self._guard.protect(messages, tools)
        text = self._render(protected, self._guard.protect_tools(tools, guard))
        with _faults("messages"):
            if guard in text:
                return self._begun(self._aliased_tokenizer().encode(text, guard))
            return self._begun(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_text(self, text: str, *, begins: bool = True) -> list[int]:
        """The ids of a prompt, or of a later piece of one, special tokens parsed. Raises RequestError."""
        _refuse_surrogates(text, "prompt")
        with _faults("prompt"):
            ids = self._backend.encode(text, add_special_tokens=False).ids
        return self._begun(ids) if begins else ids

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The text of a conversation, up to where the model shall answer. Raises RequestError."""
        return self._render(*self._in_its_words(messages, tools))

    def _in_its_words(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Sequence[Tool]]:
        """A conversation that the template can write."""
        if self._template is None or self._template.takes_tools:
            return messages, tools
        return in_words(messages, tools), ()

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        if self._template is None:
            raise RequestError("this model has no chat template; use the completion endpoint", "messages")
        for message in messages:
            _refuse_surrogates(message.role, "messages")
            _refuse_surrogates(message.content, "messages")
        text = self._template.render(messages, tools)
        _refuse_surrogates(text, "messages")
        return text

    def encode_plain(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """The ids of a text, with or without what the post-processor puts before one. Without `parse_special`, what
        spells a control token is text. Raises RequestError."""
        _refuse_surrogates(text, "content")
        with _faults("content"):
            if parse_special:
                ids = self._backend.encode(text, add_special_tokens=False).ids
            else:
                (protected,), guard = self._guard.protect([Message("user", text)])
                ids = self._aliased_tokenizer().encode(protected.content, guard)
        return self._begun(ids) if add_special else ids

    def spell(self, token_id: int) -> bytes:
        """What a token is written as, control tokens included; b"" for an id without a token."""
        return self._control_spellings.get(token_id) or self.token_bytes(token_id)

    def control_name(self, token_id: int) -> str:
        """How a token that adds nothing to the text is written; "" for every other, and where it has no name."""
        return "" if self.token_bytes(token_id) else self._backend.id_to_token(token_id) or ""

    def describe(self) -> dict[str, Any]:
        """Special tokens by their names, and the chat template, as tokenizer_config.json has them."""
        return {
            **{name: self._special_tokens.get(name) for name in SPECIAL_NAMES},
            "add_bos_token": bool(self._prefix),
            "chat_template": self._template.source if self._template is not None else None,
        }

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, perhaps part of a character; b"" for a control token or an unknown id."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens; U+FFFD where they end inside a character."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def _begun(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self._prefix)] == self._prefix else self._prefix + ids

    def _aliased_tokenizer(self) -> AliasedTokenizer:
        with self._aliased_lock:  # built when a message first holds what looks like a control token
            if self._aliased is None:
                self._aliased = AliasedTokenizer(self._backend, self._control_ids)
            return self._aliased

    def _template_writes(self, text: str) -> bool:
        return self._template is not None and not text.isspace() and text in self._template.source

    @staticmethod
    def _spell(backend: Backend, vocab: Mapping[str, int]) -> list[bytes]:
        decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else None
        try:
            return spell_vocabulary(vocab, decoder)
        except UnknownDecoderError as error:
            raise TokenizerError(str(error)) from None

    @staticmethod
    def _find_prefix(backend: Backend) -> list[int]:
        """What the post-processor puts before a text."""
        with_special = backend.encode("a", add_special_tokens=True).ids
        without = backend.encode("a", add_special_tokens=False).ids
        for start in range(len(with_special) - len(without) + 1):
            if with_special[start : start + len(without)] == without:
                return with_special[:start]
        return []


@contextmanager
def _faults(param: str | None = None) -> Iterator[None]:
    """The tokenizers library raises bare Exceptions, and panics that are no Exceptions; both are the text's fault."""
    try:
        yield
    except RequestError:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise RequestError(f"the text cannot be tokenized: {str(error)[:200]}", param) from error


def _refuse_surrogates(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the text is not valid Unicode (lone surrogate at {error.start})", param) from None


def _refuse_large(path: Path, max_bytes: int) -> None:
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise TokenizerError(f"{path.name} cannot be read: {error.strerror}") from None
    if num_bytes > max_bytes:
        raise TokenizerError(f"{path.name} has {num_bytes} bytes, the limit is {max_bytes}")


def _read_json(path: Path) -> dict[str, Any]:
    """An optional JSON object."""
    if not path.exists():
        return {}
    _refuse_large(path, MAX_CONFIG_BYTES)
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path.name} cannot be read: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path.name} holds no JSON object")
    return value


def _token_text(entry: Any) -> str | None:
    """A special token's text; files write it plainly or as an object with its flags."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _num_chars(spelling: bytes) -> int:
    """Characters that begin in these bytes: those of all tokens of a text add up to the text's."""
    return len(spelling.translate(None, delete=UTF8_CONTINUATION))
