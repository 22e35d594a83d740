"""The figures about a checkpoint folder: loss on held-out text, answers to fixed prompts."""

from __future__ import annotations

import lzma
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import bitnet_model
from bitnet_model.config import ModelConfig
from bitnet_model.ops import load_ops
from service.compose import load_tokenizer
from service.engine.tokenizer import Tokenizer
from tools import answers, evaluate
from tools.answers import Answer, answer_all, figures, load_engine, num_naming
from tools.documents import read_documents
from tools.held_out import first_documents, forward_of, held_out_loss, windows

DEMO_MODEL = Path(bitnet_model.__file__).parent / "demo"
STORY = "Once upon a time there was a little dog. He had a red ball, and he liked to play with it in the park."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DEMO_MODEL, ModelConfig.from_folder(DEMO_MODEL))


# ---------------------------------------------------------------- texts
@pytest.mark.parametrize("packed", [False, True])
def test_documents_end_at_separator_lines_and_at_the_end_of_the_file(tmp_path: Path, packed: bool) -> None:
    text = "one\ntwo\n<|endoftext|>\n\nthree <|endoftext|> four\n<|endoftext|>\nfive"
    path = tmp_path / ("text.txt.xz" if packed else "text.txt")
    path.write_bytes(lzma.compress(text.encode()) if packed else text.encode())
    assert list(read_documents(path)) == ["one\ntwo", "three <|endoftext|> four", "five"]


def test_the_first_documents_are_taken_until_they_hold_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(["a" * 10, "b" * 50, "c" * 10, "d" * 10]))
    assert first_documents(path) == ["a" * 10, "b" * 50, "c" * 10, "d" * 10]
    assert first_documents(path, max_bytes=15, max_document_bytes=20) == ["a" * 10, "c" * 10]


# ---------------------------------------------------------------- loss
def test_windows_predict_every_token_once() -> None:
    pieces = list(windows(list(range(10)), 4, 99))
    assert [i for piece in pieces for i in piece[1:]] == list(range(10))
    assert all(piece[0] == 99 and len(piece) <= 4 for piece in pieces)


def test_an_even_guess_costs_the_logarithm_of_the_vocabulary_per_token(tokenizer: Tokenizer) -> None:
    def even(token_ids: Sequence[int]) -> torch.Tensor:
        return torch.zeros(len(token_ids), tokenizer.vocab_size)

    loss = held_out_loss(even, tokenizer, [STORY, STORY], window=8)
    assert loss.num_bytes == 2 * len(STORY)
    assert loss.num_tokens == 2 * (len(tokenizer.encode_text(STORY)) - 1)
    assert loss.perplexity == pytest.approx(tokenizer.vocab_size, rel=1e-4)
    bits = loss.num_tokens * math.log2(tokenizer.vocab_size) / loss.num_bytes
    assert loss.bits_per_byte == pytest.approx(bits, rel=1e-5)


def test_both_paths_of_the_cpu_wing_give_the_demo_model_one_loss(tokenizer: Tokenizer) -> None:
    if load_ops("cpu", isa="auto", threads=1).describe()["isa"] == "torch":  # as conftest's `ops`
        pytest.skip("the native CPU wing is not built here")
    native, plain = (held_out_loss(forward_of(p, DEMO_MODEL, 64), tokenizer, [STORY] * 3) for p in ("native", "torch"))
    # On a text this short the int8 codes that fall to the other side differ by a hundredth, on 20 kB by 3 in 10,000.
    assert native.nats == pytest.approx(plain.nats, rel=0.02)


def test_a_path_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="native, torch, transformers, not 'gpu'"):
        forward_of("gpu", DEMO_MODEL, 64)


# ---------------------------------------------------------------- answers
def test_an_answer_depends_on_nothing_but_its_prompt_and_seed() -> None:
    loaded = load_engine(DEMO_MODEL, 24)
    together = answer_all(loaded, ["Hello!", "Tell me a story about a dog."], [1, 2], 24)
    alone = answer_all(load_engine(DEMO_MODEL, 24), ["Tell me a story about a dog."], [2], 24)
    assert [(a.prompt, a.seed) for a in together[::3]] == [("Hello!", 1), ("Tell me a story about a dog.", 2)]
    assert together[3] == alone[0]
    assert not alone[0].ended  # a story is longer than 24 tokens


def test_figures_count_ngrams_ends_and_loops() -> None:
    loop = "the dog ran to the " * 3
    of = figures([Answer("p", 1, "a b a b", True), Answer("p", 2, loop, False)])
    assert (of.num_answers, of.num_words, of.ended, of.loops) == (2, 19, 0.5, 0.5)
    assert of.distinct[0] == pytest.approx(6 / 19)
    with pytest.raises(ValueError, match="no answers"):
        figures([])


def test_a_story_counts_as_kept_to_its_subject_by_how_often_it_names_it() -> None:
    told = ["A dog. The dog. Dogs.", "A cat saw a dog.", "A cat."]
    stories = [("dog", Answer("p", seed, text, seed < 3)) for seed, text in enumerate(told, 1)]
    assert [num_naming(stories, times) for times in (1, 2, 3)] == [2, 1, 1]
    assert evaluate.stories_table(stories).splitlines()[-1] == "| 3 | 2 | 1 | 2 |"


def test_stories_are_asked_for_each_thing_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "STORY_TOKENS", 2)
    stories = answers.ask_for_stories(load_engine(DEMO_MODEL, 2))
    assert Counter(thing for thing, _ in stories) == {thing.split()[-1]: 10 for thing in answers.STORY_THINGS}
    assert all(f" {thing}." in answer.prompt for thing, answer in stories)


# ---------------------------------------------------------------- the report
def test_the_report_has_a_table_for_the_loss_and_one_for_the_answers(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(STORY)
    command = [str(DEMO_MODEL), str(tmp_path / "text.txt"), "--paths", "torch", "--answers", "--max-tokens", "8"]
    loss, figured, *quotes = evaluate.evaluate(evaluate.parser().parse_args(command))
    assert loss.splitlines()[-1].startswith("| torch |")
    assert figured.splitlines()[-1].startswith("| 20 |")
    assert len(quotes) == 20
    assert quotes[0].startswith("> **Hello!**\n>\n> ")


def test_an_answer_cut_by_the_limit_is_marked_so() -> None:
    (quote,) = evaluate.answer_list([Answer("Hi", 1, "one\n\ntwo", False)])
    assert quote == "> **Hi**\n>\n> one\n>\n> two\n>\n> [cut]"
