"""What each token of a vocabulary spells, as bytes: text of a stream is then a join and an incremental UTF-8 decode.

Two families: byte-level BPE (GPT-2, Llama 3, Falcon 3), whose tokens are written in 256 printable stand-ins for bytes,
and SentencePiece-like vocabularies (Llama 2), with "▁" for a space and "<0x0A>" for a byte. A SentencePiece decoder
drops the space at the very start of a text; here it stays, since a model continues a prompt. Knows no encoding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
METASPACE = "▁"


class UnknownDecoderError(ValueError):
    """The tokenizer's decoder is of a kind that this module does not know; the message names it."""


def spell_vocabulary(vocab: Mapping[str, int], decoder: Any) -> list[bytes]:
    """The bytes of every id from 0 to the largest; b"" for ids without a token.

    `decoder` is that part of tokenizer.json. Raises UnknownDecoderError.
    """
    kinds = _kinds(decoder)
    table = [b""] * (max(vocab.values(), default=-1) + 1)
    if "ByteLevel" in kinds:
        stand_ins = byte_stand_ins()
        for token, token_id in vocab.items():
            try:
                table[token_id] = bytes([stand_ins[char] for char in token])
            except KeyError:  # written as it is, as in the tokenizers library
                table[token_id] = token.encode()
    elif "Metaspace" in kinds or {"Replace", "Fuse"} <= kinds:
        has_bytes = "ByteFallback" in kinds
        for token, token_id in vocab.items():
            byte = BYTE_TOKEN.fullmatch(token) if has_bytes else None
            table[token_id] = bytes.fromhex(byte[1]) if byte else token.replace(METASPACE, " ").encode()
    else:
        raise UnknownDecoderError(f"a tokenizer with decoder {' + '.join(sorted(kinds)) or 'none'} is not supported")
    return table


def byte_stand_ins() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters stand for themselves, the other bytes for 256, 257, ... in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _kinds(decoder: Any) -> set[str]:
    if not isinstance(decoder, Mapping):
        return set()
    if decoder.get("type") == "Sequence":
        return {kind for part in decoder.get("decoders", []) for kind in _kinds(part)}
    return {str(decoder.get("type"))}
