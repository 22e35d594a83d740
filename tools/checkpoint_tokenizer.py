"""A small byte-level BPE tokenizer in the shape of Llama 3's, trained on the standard library's docstrings.

Topped up with synthetic merges so that every id of the wanted vocabulary decodes to text. The last 256 ids (16 in a
vocabulary below 4096) are special tokens laid out as in Llama 3: +0 begin, +1 end, +9 end of turn.
"""

from __future__ import annotations

import argparse
import collections
import email
import json
import logging
import os
import random
import re
import socket
import statistics
import string
import subprocess
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BITNET_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
TAGS_TEMPLATE = (  # the <|user|>/<|assistant|> style of the Falcon instruct models
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS_MODULES = (argparse, collections, email, json, logging, os, random, re, socket, statistics, string, subprocess)
MAX_TRAINED = 6000


@dataclass(frozen=True, slots=True)
class BuiltTokenizer:
    """A tokenizer, its tokenizer_config.json, and the ids a config.json names."""

    tokenizer: Tokenizer
    config: dict[str, Any]
    bos_id: int
    eos_id: int
    eot_id: int


def build_tokenizer(vocab_size: int, *, chat_tags: bool) -> BuiltTokenizer:
    """Train a tokenizer of exactly `vocab_size` ids; `chat_tags` takes the Falcon template instead of 2B-4T's."""
    num_special = 256 if vocab_size >= 4096 else 16
    base = vocab_size - num_special
    assert base >= 256, "a byte-level alphabet needs 256 ids beside the special ones"
    tokenizer = Tokenizer(_bpe_model(base))
    tokenizer.pre_tokenizer = _splitter()
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True, normalized=False) for name in _special_names(num_special, chat_tags)]
    tokenizer.add_special_tokens(special)
    assert tokenizer.get_vocab_size() == vocab_size, vocab_size
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                special_tokens=[("<|begin_of_text|>", base)],
            ),
        ]
    )
    config = _tokenizer_config(special, base, chat_tags)
    return BuiltTokenizer(tokenizer, config, bos_id=base, eos_id=base + 1, eot_id=base + 9)


def _bpe_model(num_tokens: int) -> models.BPE:
    """A BPE of exactly num_tokens, trained and then filled with concatenations of what it knows."""
    trained = Tokenizer(models.BPE(ignore_merges=True))
    trained.pre_tokenizer = _splitter()
    trainer = trainers.BpeTrainer(
        vocab_size=min(num_tokens, MAX_TRAINED),
        special_tokens=[],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(_corpus(), trainer)
    model = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ", 1)) for merge in model["merges"]]
    known = sorted(vocab, key=vocab.__getitem__)
    letters = [token for token in known if token.isascii() and token.isalpha() and len(token) <= 3]
    words = [token for token in known if token.startswith("\u0120") and token[1:].isascii() and token[1:].isalpha()]
    pairs = ((word, letter) for word in words + letters for letter in letters)
    while len(vocab) < num_tokens:
        word, letter = next(pairs)
        if word + letter not in vocab:
            vocab[word + letter] = len(vocab)
            merges.append((word, letter))
    return models.BPE(vocab=vocab, merges=merges, ignore_merges=True)


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _corpus() -> list[str]:
    texts = []
    for module in CORPUS_MODULES:
        texts.append(module.__doc__ or "")
        docs = (getattr(vars(module)[name], "__doc__", None) for name in sorted(vars(module)))
        texts += [doc for doc in docs if isinstance(doc, str)]
    chat = ["User: Hello, how are you?", "Assistant: I am fine, thank you.", "System: You are helpful."]
    return texts + chat * 5


def _special_names(count: int, chat_tags: bool) -> list[str]:
    named = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 9: "<|eot_id|>"}
    if chat_tags:
        named |= {2: "<|system|>", 3: "<|user|>", 4: "<|assistant|>"}
    reserved = iter(range(count))
    return [named.get(index) or f"<|reserved_special_token_{next(reserved)}|>" for index in range(count)]


def _tokenizer_config(special: list[AddedToken], base: int, chat_tags: bool) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "added_tokens_decoder": {str(base + i): {"content": token.content, **flags} for i, token in enumerate(special)},
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>" if chat_tags else "<|end_of_text|>",
        "chat_template": TAGS_TEMPLATE if chat_tags else BITNET_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
