"""The training of the demo model: what it learns from, what it computes, and what it writes."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from tools.train_demo import data, evaluate, export, model, train
from tools.train_demo.model import DemoConfig, DemoModel

TEXT = "Once upon a time there was a dog. The dog had a red ball. He liked the ball and the ball liked him. " * 8
CHAT = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi there."},
    {"role": "user", "content": "Who are you? "},
    {"role": "assistant", "content": "I am a dog."},
]
CONFIG = DemoConfig(vocab_size=300, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, ffn_size=96)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return data.train_tokenizer([TEXT], 300)


@pytest.fixture
def settings(tmp_path: Path) -> train.TrainSettings:
    return train.TrainSettings(
        out=tmp_path, deadline=time.time() + 60, rows_per_step=4, num_workers=1, max_steps=4, device="cpu"
    )


def row_sets(tokenizer: Tokenizer) -> dict[str, data.Rows]:
    documents = [data.encode_document(tokenizer, TEXT)] * 8
    chats = data.pack_rows([data.encode_chat(tokenizer, CHAT)] * 4, 64, 1)
    return {"chat": chats} | {name: data.stream_rows(documents, 64) for name in ("story", "tale", "book")}


def new_run(tokenizer: Tokenizer, settings: train.TrainSettings) -> train.Run:
    return train.Run(CONFIG, row_sets(tokenizer), settings, data.special_id(tokenizer, data.BEGIN))


# ---------------------------------------------------------------- data
def test_special_tokens_lie_at_the_end_as_in_llama_3(tokenizer: Tokenizer) -> None:
    base = 300 - data.NUM_SPECIALS
    assert [tokenizer.token_to_id(t) for t in (data.BEGIN, data.END, data.END_OF_TURN)] == [base, base + 1, base + 9]
    assert tokenizer.encode("a dog").ids[0] == base


def test_a_chat_is_encoded_as_the_template_renders_it_with_one_begin_token(tokenizer: Tokenizer) -> None:
    ids, loss = data.encode_chat(tokenizer, CHAT)
    template = ImmutableSandboxedEnvironment().from_string(data.CHAT_TEMPLATE)
    prompt = tokenizer.encode(template.render(messages=CHAT[:-1], add_generation_prompt=True)).ids
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode(ids, skip_special_tokens=False) == data.BEGIN + template.render(messages=CHAT)
    assert loss == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert ids[-1] == data.special_id(tokenizer, data.END_OF_TURN)


def test_packed_rows_hold_every_piece_whole_and_count_no_padding() -> None:
    rng = random.Random(0)
    pieces = [([7] * n, [True] * n) for n in (rng.randint(1, 20) for _ in range(50))]
    rows = data.pack_rows(pieces, 20, 9)
    assert rows.loss.sum() == sum(len(ids) for ids, _ in pieces)
    assert ((rows.token_ids == 7) == rows.loss).all()


def test_rows_of_a_stream_are_the_documents_in_order() -> None:
    rows = data.stream_rows([[1, 2, 3], [1, 4, 5, 6]], 3)
    assert rows.token_ids.tolist() == [[1, 2, 3], [1, 4, 5]]
    assert rows.loss.tolist() == [[False, True, True]] * 2


def test_joined_conversations_alternate_and_stay_short() -> None:
    joined = data._joined([CHAT[:2], CHAT[2:]], random.Random(3))
    assert [m["role"] for m in joined] == ["user", "assistant"] * (len(joined) // 2)
    assert len(joined) in (4, 6)


# ---------------------------------------------------------------- model
def test_the_forward_weight_is_ternary_and_the_gradient_goes_straight_through() -> None:
    weight = torch.randn(12, 8, requires_grad=True)
    image = model.ternarize(weight)
    assert set((image / model.absmean(weight)).unique().tolist()) <= {-1.0, 0.0, 1.0}
    upstream = torch.randn(12, 8)
    image.backward(upstream)
    assert torch.equal(weight.grad, upstream)


def test_activations_are_rounded_to_127_steps_of_their_row_maximum() -> None:
    x = torch.randn(5, 33)
    x[2] = 0
    codes = model.round_activation(x) * 127 / x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert codes.abs().max() <= 127.001
    assert not codes[2].any()


def test_a_piece_does_not_see_the_piece_before_it_in_its_row() -> None:
    torch.manual_seed(0)
    net = DemoModel(CONFIG)
    rows = torch.tensor([[284, 5, 6, 7, 284, 8, 9, 10], [284, 11, 12, 13, 284, 8, 9, 10]])
    logits = net(rows, train.piece_mask(rows, 284))
    assert torch.allclose(logits[0, 4:], logits[1, 4:], atol=1e-5)
    assert not torch.allclose(logits[0, 3], logits[1, 3], atol=1e-2)


# ---------------------------------------------------------------- training
def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 32, 32), (2, 16, 48), (2, 48, 16)):
        singular = torch.linalg.svdvals(train.orthogonalize(torch.randn(shape)))
        assert singular.max() < 1.3
        assert singular.median() > 0.6


def test_the_learning_rate_warms_up_holds_and_ends_near_zero() -> None:
    factors = [train.lr_factor(p) for p in (0.0, 0.01, 0.2, 0.675, 1.0)]
    assert factors == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.01])


def test_a_few_steps_lower_the_loss_and_leave_log_and_checkpoint(
    tokenizer: Tokenizer, settings: train.TrainSettings
) -> None:
    run = new_run(tokenizer, replace(settings, max_steps=10))
    run.trained_s = 5.0  # past the warm-up
    losses: list[float] = []
    train.train(run, lambda _, loss: losses.append(loss))
    assert len(losses) == 10
    assert losses[-1] < 0.85 * losses[0]
    assert (settings.out / "checkpoint.pt").exists()
    assert len((settings.out / "log.jsonl").read_text().splitlines()) == 1


def test_two_workers_compute_the_gradient_of_one(tokenizer: Tokenizer, settings: train.TrainSettings) -> None:
    runs = [new_run(tokenizer, replace(settings, num_workers=n, rows_per_pass=4 // n)) for n in (1, 2)]
    assert runs[0].train_step() == pytest.approx(runs[1].train_step(), rel=1e-5)


def test_a_restarted_run_goes_on_where_it_was(tokenizer: Tokenizer, settings: train.TrainSettings) -> None:
    run = new_run(tokenizer, settings)
    train.train(run, lambda *_: None)
    again = new_run(tokenizer, settings)
    again.load()
    assert (again.step, again.tokens, again.trained_s) == (run.step, run.tokens, run.trained_s)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True))
    assert again.finished()


def test_a_paused_run_does_nothing_until_its_deadline(tokenizer: Tokenizer, settings: train.TrainSettings) -> None:
    (settings.out / "PAUSE").touch()
    run = new_run(tokenizer, replace(settings, deadline=time.time() + 0.2, pause_file=settings.out / "PAUSE"))
    train.train(run, lambda *_: None)
    assert run.step == 0


# ---------------------------------------------------------------- export and evaluation
def test_four_rows_a_quarter_apart_share_a_byte() -> None:
    ternary = torch.randint(-1, 2, (12, 7), dtype=torch.int8)
    packed = export.pack_ternary(ternary)
    assert packed.shape == (3, 7)
    expected = [sum((int(ternary[1 + 3 * i, 4]) + 1) << 2 * i for i in range(4))]
    assert packed[1, 4].tolist() == expected[0]
    assert torch.equal(export.unpack_ternary(packed), ternary)
    with pytest.raises(ValueError, match="6 output rows"):
        export.pack_ternary(ternary[:6])


def test_exported_codes_are_the_weights_of_the_training_forward() -> None:
    weight = torch.randn(16, 9)
    ternary, scale = export.ternary_codes(weight)
    assert torch.equal(ternary * scale.float(), model.ternarize(weight))


def test_the_exported_folder_runs_in_transformers_with_the_loss_of_the_training_model(
    tokenizer: Tokenizer, settings: train.TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    train.train(new_run(tokenizer, settings), lambda *_: None)
    tokenizer.save(str(settings.out / "tokenizer.json"))
    export.export(settings.out / "checkpoint.pt", settings.out / "tokenizer.json", settings.out / "folder")
    ours = evaluate.forward_of_checkpoint(settings.out / "checkpoint.pt")
    theirs = evaluate.forward_of_folder(settings.out / "folder")
    losses = [evaluate.held_out_loss(f, tokenizer, [TEXT], window=32) for f in (ours, theirs)]
    assert losses[0].num_bytes == len(TEXT)
    assert losses[0].nats == pytest.approx(losses[1].nats, rel=0.02)


def test_an_answer_ends_at_the_end_of_turn_token(tokenizer: Tokenizer) -> None:
    eot = data.special_id(tokenizer, data.END_OF_TURN)
    script = iter([*tokenizer.encode("Hi.", add_special_tokens=False).ids, eot])

    def forward(token_ids: torch.Tensor) -> torch.Tensor:
        logits = torch.full((1, token_ids.shape[1], 300), -50.0)
        logits[0, -1, next(script)] = 50.0
        return logits

    assert evaluate.answer(forward, tokenizer, CHAT[:1], evaluate.Sampling(), seed=1) == ("Hi.", True)


def test_the_repeat_penalty_turns_a_close_choice() -> None:
    logits = torch.tensor([4.0, 4.2] + [-20.0] * 8)
    generator = torch.Generator().manual_seed(0)
    sampling = evaluate.Sampling(temperature=0.01, repeat_penalty=1.3)
    assert evaluate.draw(logits, [5], sampling, generator) == 1
    assert evaluate.draw(logits, [5, 1], sampling, generator) == 0


def test_windows_predict_every_token_once() -> None:
    pieces = list(evaluate.windows(list(range(10)), 4, 99))
    assert [i for piece in pieces for i in piece[1:]] == list(range(10))
    assert all(piece[0] == 99 and len(piece) <= 4 for piece in pieces)


def test_rows_survive_saving(tmp_path: Path) -> None:
    rows = data.stream_rows([[1, 2, 3, 4]], 2)
    rows.save(tmp_path / "rows.npz")
    again = data.Rows.load(tmp_path / "rows.npz")
    assert np.array_equal(rows.token_ids, again.token_ids)
    assert np.array_equal(rows.loss, again.loss)
