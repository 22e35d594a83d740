"""The training of the demo model: what it learns from, what it computes, and what it writes."""

from __future__ import annotations

import json
import lzma
import random
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from bitnet_model.config import ModelConfig
from service.compose import load_tokenizer
from tools.held_out import HeldOutLoss, forward_of, held_out_loss
from tools.train_demo import data, export, model, muon, start, train, vocabulary
from tools.train_demo.__main__ import main
from tools.train_demo.model import DemoConfig, DemoModel
from tools.train_demo.plot import plot_loss
from tools.train_demo.vocabulary import BEGIN, END, END_OF_TURN, special_id

TEXT = "Once upon a time there was a dog. The dog had a red ball. He liked the ball and the ball liked him. " * 8
CHAT = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi there."},
    {"role": "user", "content": "Who are you? "},
    {"role": "assistant", "content": "I am a dog."},
]
MIX = {"story": 0.4, "tale": 0.1, "book": 0.3, "chat": 0.2}
CONFIG = DemoConfig(vocab_size=300, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, ffn_size=96)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vocabulary.train_tokenizer([TEXT], 300)


@pytest.fixture
def settings(tmp_path: Path) -> train.TrainSettings:
    return train.TrainSettings(
        out=tmp_path,
        deadline=time.time() + 60,
        first_mix=MIX,
        second_mix=MIX,
        rows_per_step=4,
        num_workers=1,
        max_steps=4,
        device="cpu",
    )


def row_sets(tokenizer: Tokenizer) -> dict[str, data.Rows]:
    documents = [data.encode_document(tokenizer, TEXT)] * 8
    chats = data.pack_rows([data.encode_chat(tokenizer, CHAT)] * 4, 64, 1)
    return {"chat": chats} | {name: data.stream_rows(documents, 64) for name in ("story", "tale", "book")}


def new_run(tokenizer: Tokenizer, settings: train.TrainSettings) -> train.Run:
    torch.manual_seed(1)
    return train.Run(DemoModel(CONFIG), row_sets(tokenizer), settings, special_id(tokenizer, BEGIN))


# ---------------------------------------------------------------- data
def test_special_tokens_lie_at_the_end_as_in_llama_3(tokenizer: Tokenizer) -> None:
    base = 300 - vocabulary.NUM_SPECIALS
    assert [tokenizer.token_to_id(t) for t in (BEGIN, END, END_OF_TURN)] == [
        base,
        base + 1,
        base + 9,
    ]
    assert tokenizer.encode("a dog").ids[0] == base


def test_a_chat_is_encoded_as_the_template_renders_it_with_one_begin_token(tokenizer: Tokenizer) -> None:
    ids, loss = data.encode_chat(tokenizer, CHAT)
    template = ImmutableSandboxedEnvironment().from_string(vocabulary.CHAT_TEMPLATE)
    prompt = tokenizer.encode(template.render(messages=CHAT[:-1], add_generation_prompt=True)).ids
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode(ids, skip_special_tokens=False) == BEGIN + template.render(messages=CHAT)
    assert loss == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert ids[-1] == special_id(tokenizer, END_OF_TURN)


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
    logits = net(rows, model.pieces_of(rows == 284))
    assert torch.allclose(logits[0, 4:], logits[1, 4:], atol=1e-5)
    assert not torch.allclose(logits[0, 3], logits[1, 3], atol=1e-2)


# ---------------------------------------------------------------- training
def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 32, 32), (2, 16, 48), (2, 48, 16)):
        singular = torch.linalg.svdvals(muon.orthogonalize(torch.randn(shape)))
        assert singular.max() < 1.3
        assert singular.median() > 0.6


def test_the_learning_rate_warms_up_holds_and_ends_near_zero() -> None:
    factors = [train.lr_factor(p, 0.35) for p in (0.0, 0.01, 0.2, 0.675, 1.0)]
    assert factors == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.01])


def test_a_few_steps_lower_the_loss_and_leave_log_and_checkpoint(
    tokenizer: Tokenizer, settings: train.TrainSettings
) -> None:
    run = new_run(tokenizer, replace(settings, max_steps=10))
    run.progress = 0.05  # past the warm-up
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


def test_a_call_that_ends_before_its_run_leaves_the_rest_to_the_next(
    tokenizer: Tokenizer, settings: train.TrainSettings
) -> None:
    first = new_run(tokenizer, replace(settings, max_steps=0, deadline=time.time() + 600, stop_at=time.time() + 0.5))
    train.train(first, lambda *_: None)
    assert 0 < first.progress < 0.1
    assert train.trained_s(settings.out) == first.trained_s > 0
    assert train.trained_s(settings.out / "elsewhere") == 0


def test_a_run_that_is_told_nothing_ends_at_its_deadline_with_its_schedule(
    tokenizer: Tokenizer, settings: train.TrainSettings
) -> None:
    run = new_run(tokenizer, replace(settings, max_steps=0, deadline=time.time() + 2))
    train.train(run, lambda *_: None)
    assert time.time() < run.settings.deadline + 2
    assert run.progress > 0.6


def test_a_stop_between_two_steps_does_not_jump_in_the_schedule(
    tokenizer: Tokenizer, settings: train.TrainSettings
) -> None:
    run = new_run(tokenizer, replace(settings, deadline=time.time() + 1000))
    for step_s in (1.0, 1.0, 400.0, 1.0):
        run.advance(step_s)
    assert run.progress == pytest.approx(4 / 1000, rel=0.1)


def test_the_second_stage_starts_from_the_weights_of_the_first_with_a_schedule_of_its_own(
    tokenizer: Tokenizer, settings: train.TrainSettings
) -> None:
    first = new_run(tokenizer, settings)
    train.train(first, lambda *_: None)
    begun = start.load_start(settings.out / "checkpoint.pt")
    second = train.Run(begun, row_sets(tokenizer), replace(settings, out=settings.out / "second"), first.begin_id)
    second.load()
    assert (second.step, second.progress) == (0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), begun.parameters(), strict=True))


def test_attention_in_blocks_equals_attention_in_one_call() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 300, 16), torch.randn(2, 2, 300, 16), torch.randn(2, 2, 300, 16)
    pieces = model.pieces_of(torch.randint(0, 40, (2, 300)) == 0)
    wanted = functional.scaled_dot_product_attention(q, k, v, attn_mask=pieces, enable_gqa=True)
    assert torch.allclose(model.attend(q, k, v, pieces), wanted, atol=1e-5)


def test_attention_over_offsets_of_pieces_equals_attention_with_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_by_one(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
        parts = [[x[a:b].transpose(0, 1) for x in (q, k, v)] for a, b in pairwise(offsets.tolist())]
        assert max(part[0].shape[1] for part in parts) <= longest
        return torch.cat(
            [functional.scaled_dot_product_attention(*part, is_causal=True) for part in parts], 1
        ).transpose(0, 1)

    monkeypatch.setattr(model, "_fused", one_by_one)
    q, k, v = torch.randn(2, 4, 90, 16), torch.randn(2, 2, 90, 16), torch.randn(2, 2, 90, 16)
    starts = torch.randint(0, 20, (2, 90)) == 0
    wanted = model.attend(q, k, v, model.pieces_of(starts))
    assert torch.allclose(model.attend_pieces(q, k, v, model.offsets_of(starts)), wanted, atol=1e-5)


def test_gradients_that_compiling_lost_are_found() -> None:
    wanted = [torch.ones(3), torch.ones(4)]
    train.check_gradients(("a", "b"), wanted, [torch.ones(3) * 1.2, torch.ones(4) * 0.8])
    with pytest.raises(RuntimeError, match=r"wrong gradients.* 1, as of b \(\|gradient\| 0 instead of 2\)"):
        train.check_gradients(("a", "b"), wanted, [torch.ones(3), torch.zeros(4)])


def test_the_loss_of_held_out_rows_is_in_the_log(tokenizer: Tokenizer, settings: train.TrainSettings) -> None:
    rows = data.stream_rows([data.encode_document(tokenizer, TEXT[:200])] * 9, 64)
    torch.manual_seed(1)
    watched = replace(settings, max_steps=20, watch_every=10)
    run = train.Run(DemoModel(CONFIG), row_sets(tokenizer), watched, special_id(tokenizer, BEGIN), rows)
    first = run.held_out_loss()
    train.train(run, lambda *_: None)
    logged = [json.loads(line) for line in (settings.out / "log.jsonl").read_text().splitlines()]
    losses = [record["held_out"] for record in logged]
    assert first is not None
    assert len(losses) == 2
    assert losses[1] < first
    assert losses[1] == round(run.held_out_loss() or 0.0, 4)


def test_the_loss_curve_of_a_log_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib (extra `train`) is not installed here")
    records = [{"tokens": step * 8192, "loss": 8.0 - step, "held_out": 9.0 - step} for step in range(5)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_loss(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


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


@pytest.fixture
def exported(tokenizer: Tokenizer, settings: train.TrainSettings) -> tuple[train.Run, Path]:
    """A trained run and the folder it was exported to."""
    run = new_run(tokenizer, settings)
    train.train(run, lambda *_: None)
    tokenizer.save(str(settings.out / "tokenizer.json"))
    export.export(settings.out / "checkpoint.pt", settings.out / "tokenizer.json", settings.out / "folder")
    return run, settings.out / "folder"


def folder_loss(path_name: str, folder: Path) -> HeldOutLoss:
    tokenizer = load_tokenizer(folder, ModelConfig.from_folder(folder))
    return held_out_loss(forward_of(path_name, folder, 32), tokenizer, [TEXT], 32)


def test_every_path_gives_the_exported_folder_the_loss_of_the_training_model(
    exported: tuple[train.Run, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    run, folder = exported
    tokenizer = load_tokenizer(folder, ModelConfig.from_folder(folder))
    with torch.inference_mode():
        trained = held_out_loss(lambda ids: run.model(torch.tensor([ids]))[0], tokenizer, [TEXT], 32)
    assert trained.num_bytes == len(TEXT)
    assert folder_loss("torch", folder).nats == pytest.approx(trained.nats, rel=0.01)
    assert folder_loss("transformers", folder).nats == pytest.approx(trained.nats, rel=0.01)


def test_a_folder_in_parts_is_the_folder_in_one(exported: tuple[train.Run, Path], tmp_path: Path) -> None:
    _, folder = exported
    parts = tmp_path / "parts"
    export.export(tmp_path / "checkpoint.pt", tmp_path / "tokenizer.json", parts, max_part_bytes=8_000)
    files = sorted(parts.glob("*.safetensors"))
    assert len(files) > 3
    assert max(file.stat().st_size for file in files[1:]) < 10_000
    assert folder_loss("torch", parts) == folder_loss("torch", folder)
    export.export(tmp_path / "checkpoint.pt", tmp_path / "tokenizer.json", parts)
    assert [file.name for file in parts.glob("*.safetensors*")] == ["model.safetensors"]


def test_masters_spread_under_given_codes_give_them_back() -> None:
    torch.manual_seed(0)
    codes, scale = export.ternary_codes(torch.randn(96, 64))
    again, again_scale = export.ternary_codes(start.spread_masters(codes, float(scale), seed=3))
    assert (again == codes).float().mean() > 0.99
    assert float(again_scale) == pytest.approx(float(scale), rel=0.01)


def test_training_goes_on_from_an_exported_folder(exported: tuple[train.Run, Path]) -> None:
    run, folder = exported
    again = start.load_start(folder)
    for (name, was), now in zip(run.model.named_parameters(), again.parameters(), strict=True):
        if name.endswith("_proj.weight"):
            assert (export.ternary_codes(was)[0] == export.ternary_codes(now)[0]).float().mean() > 0.99
        else:
            assert torch.equal(was.detach().bfloat16().float(), now)


def test_rows_survive_saving(tmp_path: Path) -> None:
    rows = data.stream_rows([[1, 2, 3, 4]], 2)
    rows.save(tmp_path / "rows.npz")
    again = data.Rows.load(tmp_path / "rows.npz")
    assert np.array_equal(rows.token_ids, again.token_ids)
    assert np.array_equal(rows.loss, again.loss)


# ---------------------------------------------------------------- all of it
@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of made-up words, just large enough for the tokenizer of the CPU recipe."""
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefghilmnoprstu", k=rng.randint(3, 9))) for _ in range(4000)]
    stories = [" ".join(rng.choices(words, k=400)) for _ in range(40)]
    chats = [{"source": "templates", "messages": CHAT}] * 40
    index = ["number\ttier\tsource\tbook\tlength\tease"]
    index += [f"{n}\tstory\t{('tinystories', 'fairytaleqa', 'books')[n % 3]}\t-\t0\t60.0" for n in range(40)]
    files = {
        "pretrain.txt.xz": "".join(f"{story}\n<|endoftext|>\n" for story in stories),
        "pretrain.index.tsv.xz": "\n".join(index) + "\n",
        "chat.jsonl.xz": "".join(json.dumps(chat) + "\n" for chat in chats),
    }
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_bytes(lzma.compress(text.encode()))
    return folder


def test_one_command_prepares_trains_and_exports_and_goes_on_there_and_elsewhere(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    command = ["all", str(corpus), "--work", str(work), "--out", str(out), "--recipe", "cpu", "--device", "cpu"]
    command += ["--no-compile", "--minutes", "600", "--max-part-mib", "3"]
    main([*command, "--max-steps", "1"])
    first = {path.name for path in out.iterdir()}
    assert first >= {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    assert max(path.stat().st_size for path in out.iterdir()) < 3 << 20 < sum(p.stat().st_size for p in out.iterdir())
    rows = (work / "data" / "chat.npz").stat().st_mtime_ns
    main([*command, "--max-steps", "2"])
    assert (work / "data" / "chat.npz").stat().st_mtime_ns == rows
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if "steps," in line] == [
        "1 steps",
        "2 steps",
    ]
    assert ModelConfig.from_folder(out).vocab_size == 4096

    its_own = (out / "tokenizer.json").read_text() + "\n"  # tells it from one trained anew
    (out / "tokenizer.json").write_text(its_own)
    elsewhere = [*command, "--start", str(out), "--max-steps", "1"]
    elsewhere[elsewhere.index(str(work))] = str(tmp_path / "new")
    main(elsewhere)
    assert (tmp_path / "new" / "data" / "tokenizer.json").read_text() == its_own
