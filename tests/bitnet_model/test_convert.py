"""Conversion: packed from masters, safetensors from GGUF, and a folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitnet_model.config import ModelConfig
from bitnet_model.convert import Conversion, check, from_gguf, from_masters, write
from bitnet_model.errors import CheckpointError
from bitnet_model.tensor_writer import NewTensor, new_folder
from tests.bitnet_model.folders import with_tensors
from tests.bitnet_model.gguf_files import ARRAY, FLOAT_TYPE, STRING, Gguf, gguf_of, i2s_bytes

ROOT = Path(__file__).parents[2]


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


def problems(work: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        work()
    return "\n".join(caught.value.problems)


def convert_gguf(file: Path, tokenizer: Path, target: Path) -> Path:
    with from_gguf(file, tokenizer) as conversion:
        write(conversion, target, silent)
    return target


def test_masters_become_exactly_their_packed_twin(tiny_master: Path, tiny_packed: Path, tmp_path: Path) -> None:
    with from_masters(tiny_master) as conversion:
        write(conversion, tmp_path / "packed", silent)
    ours, twin = load_file(tmp_path / "packed" / "model.safetensors"), load_file(tiny_packed / "model.safetensors")
    assert ours.keys() == twin.keys()
    assert [
        name for name in ours if ours[name].dtype != twin[name].dtype or not torch.equal(ours[name], twin[name])
    ] == []
    assert json.loads((tmp_path / "packed" / "config.json").read_text()) == json.loads(
        (tiny_packed / "config.json").read_text()
    )
    names = {path.name for path in (tmp_path / "packed").iterdir()}
    assert names == {path.name for path in tiny_packed.iterdir()}


def test_sharded_masters_are_read_too(tiny_master: Path, tiny_packed: Path, tmp_path: Path) -> None:
    sharded = Path(shutil.copytree(tiny_master, tmp_path / "sharded"))
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(weights)
    index = {name: f"model-{1 + (i % 2)}.safetensors" for i, name in enumerate(names)}
    for shard in set(index.values()):
        save_file({name: weights[name] for name in names if index[name] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with from_masters(sharded) as conversion:
        write(conversion, tmp_path / "packed", silent)
    assert not (tmp_path / "packed" / "model.safetensors.index.json").exists()
    assert ModelConfig.from_folder(tmp_path / "packed") == ModelConfig.from_folder(tiny_packed)


def test_a_packed_folder_has_nothing_to_convert(tiny_packed: Path) -> None:
    def work() -> None:
        with from_masters(tiny_packed):
            pass

    assert "packed already" in problems(work)


def test_a_master_with_nan_is_refused_and_leaves_nothing(tiny_master: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][3, 5] = float("nan")

    folder = with_tensors(tiny_master, tmp_path, spoil)

    def work() -> None:
        with from_masters(folder) as conversion:
            write(conversion, tmp_path / "out", silent)

    assert name in problems(work)
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_a_dry_run_checks_the_values_and_writes_nothing(tiny_master: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    with from_masters(tiny_master) as conversion:
        check(conversion, lambda done, total: seen.append(total - done))
    assert seen[-1] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_file_becomes_the_checkpoint_it_was_made_from(tiny_packed: Path, tmp_path: Path) -> None:
    file = gguf_of(tiny_packed).write(tmp_path / "model.gguf")
    out = convert_gguf(file, tiny_packed, tmp_path / "out")
    ours, source = load_file(out / "model.safetensors"), load_file(tiny_packed / "model.safetensors")
    assert ours.keys() == source.keys()
    assert [name for name in ours if not torch.equal(ours[name].float(), source[name].float())] == []
    assert ModelConfig.from_folder(out) == ModelConfig.from_folder(tiny_packed)
    assert (out / "tokenizer.json").read_bytes() == (tiny_packed / "tokenizer.json").read_bytes()


def test_a_scale_that_bf16_cannot_hold_stays_a_float(tiny_packed: Path, tmp_path: Path) -> None:
    made = gguf_of(tiny_packed)
    name = "blk.0.attn_k.weight"
    kind, shape, data = made.tensors[name]
    made.tensors[name] = (kind, shape, data[:-32] + struct.pack("<f", 1.2345) + bytes(28))
    out = convert_gguf(made.write(tmp_path / "model.gguf"), tiny_packed, tmp_path / "out")
    scale = load_file(out / "model.safetensors")["model.layers.0.self_attn.k_proj.weight_scale"]
    assert scale.dtype == torch.float32
    assert scale.item() == pytest.approx(1.2345, abs=1e-7)


def test_a_file_that_is_silent_on_theta_means_ggufs_own_default(tiny_packed: Path, tmp_path: Path) -> None:
    made = gguf_of(tiny_packed)
    del made.metadata["bitnet-b1.58.rope.freq_base"]
    out = convert_gguf(made.write(tmp_path / "model.gguf"), tiny_packed, tmp_path / "out")
    assert ModelConfig.from_folder(out).rope_theta == 10000.0


def with_tensor(made: Gguf, name: str, *value: object) -> None:
    made.tensors[name] = value  # type: ignore[assignment]


def zeros_only(made: Gguf) -> None:
    _, shape, _ = made.tensors["blk.0.attn_q.weight"]
    with_tensor(made, "blk.0.attn_q.weight", 36, shape, i2s_bytes([0] * (shape[0] * shape[1]), 1.0))


def unused_code(made: Gguf) -> None:
    kind, shape, data = made.tensors["blk.0.attn_q.weight"]
    with_tensor(made, "blk.0.attn_q.weight", kind, shape, bytes([0xFF]) + data[1:])


def bad_scale(made: Gguf) -> None:
    kind, shape, data = made.tensors["blk.0.attn_q.weight"]
    with_tensor(made, "blk.0.attn_q.weight", kind, shape, data[:-32] + struct.pack("<f", float("nan")) + bytes(28))


def other_type(made: Gguf) -> None:
    _, shape, data = made.tensors["blk.0.attn_q.weight"]
    with_tensor(made, "blk.0.attn_q.weight", 35, shape, data)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (zeros_only, ["blk.0.attn_q.weight", "100.0% zeros"]),
        (unused_code, ["blk.0.attn_q.weight", "code 3"]),
        (bad_scale, ["blk.0.attn_q.weight", "scale nan"]),
        (other_type, ["blk.0.attn_q.weight", "TQ2_0"]),
        (lambda made: made.tensors.pop("blk.1.ffn_up.weight"), ["blk.1.ffn_up.weight is missing"]),
        (lambda made: with_tensor(made, "rope_freqs", FLOAT_TYPE, (4,), bytes(16)), ["rope_freqs", "no part"]),
        (lambda made: with_tensor(made, "blk.0.attn_norm.weight", 0, (4,), bytes(16)), ["[4]", "[128]"]),
        (lambda made: with_tensor(made, "blk.0.attn_q.weight", 0, (128, 128), bytes(65536)), ["floats", "I2_S"]),
        (lambda made: made.metadata.update({"general.architecture": (STRING, "llama")}), ["llama", "bitnet-b1.58"]),
        (lambda made: made.metadata.pop("bitnet-b1.58.block_count"), ["num_hidden_layers", "missing"]),
        (lambda made: made.metadata.pop("bitnet-b1.58.attention.layer_norm_rms_epsilon"), ["epsilon is missing"]),
        (lambda made: setattr(made, "version", 1), ["version 1"]),
        (lambda made: made.metadata.update({"x": (ARRAY, (STRING, []))}), []),
    ],
)
def test_a_gguf_file_that_is_no_such_model_is_refused_with_the_reason(
    tiny_packed: Path, tmp_path: Path, edit: Callable[[Gguf], object], words: list[str]
) -> None:
    made = gguf_of(tiny_packed)
    edit(made)
    file = made.write(tmp_path / "model.gguf")

    def work() -> None:
        convert_gguf(file, tiny_packed, tmp_path / "out")

    if not words:  # an edit that harms nothing
        work()
        return
    found = problems(work)
    assert all(word in found for word in words), found
    assert not (tmp_path / "out").exists()


def test_no_truncation_and_no_flipped_byte_of_a_header_does_worse_than_a_refusal(
    tiny_packed: Path, tmp_path: Path
) -> None:
    whole = gguf_of(tiny_packed).write(tmp_path / "model.gguf").read_bytes()
    generator = torch.Generator().manual_seed(3)
    file = tmp_path / "damaged.gguf"
    header_bytes = 3000
    for turn in range(150):
        place = int(torch.randint(0, header_bytes, (1,), generator=generator))
        byte = int(torch.randint(0, 256, (1,), generator=generator))
        file.write_bytes(whole[:place] if turn % 3 == 0 else whole[:place] + bytes([byte]) + whole[place + 1 :])
        try:
            with from_gguf(file, tiny_packed) as conversion:
                assert conversion.num_bytes < 10 * len(whole)
        except CheckpointError:
            assert turn >= 0  # the refusal is the point; anything else would have come through


def test_counts_of_a_stranger_size_no_allocation(tmp_path: Path, tiny_packed: Path) -> None:
    file = tmp_path / "bomb.gguf"
    bombs = {
        "tensors": struct.pack("<IQQ", 3, 1 << 60, 0),
        "metadata keys": struct.pack("<IQQ", 3, 0, 1 << 60),
        "bytes of one text": struct.pack("<IQQQ", 3, 0, 1, 1 << 62),
        "truncated": struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1000),
    }
    for words, raw in bombs.items():
        file.write_bytes(b"GGUF" + raw)

        def work() -> None:
            with from_gguf(file, tiny_packed):
                pass

        assert words in problems(work)


def test_a_gguf_file_needs_a_tokenizer(tiny_packed: Path, tmp_path: Path) -> None:
    file = gguf_of(tiny_packed).write(tmp_path / "model.gguf")

    def work() -> None:
        with from_gguf(file, tmp_path):
            pass

    assert "tokenizer.json" in problems(work)


def test_a_folder_that_holds_something_is_not_written_over(tiny_master: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")

    def work() -> None:
        with from_masters(tiny_master) as conversion:
            write(conversion, tmp_path / "out", silent)

    assert "exists already" in problems(work)
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_a_disk_that_is_too_small_is_found_out_before(tmp_path: Path) -> None:
    def work() -> None:
        with new_folder(tmp_path / "out", 1 << 60):
            pass

    assert "free" in problems(work)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_refusal(tiny_master: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    def work() -> None:
        with from_masters(tiny_master) as conversion:
            write(conversion, tmp_path / "file" / "out", silent)

    assert "cannot be written" in problems(work)


def test_two_writers_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", 1) as folder:
        (folder / "mine").write_text("1")

        def work() -> None:
            with new_folder(tmp_path / "out", 1):
                pass

        assert "another process" in problems(work)
        assert (folder / "mine").read_text() == "1"
    assert (tmp_path / "out" / "mine").read_text() == "1"


HANGING = """
import sys, time
from pathlib import Path
import torch
from bitnet_model.convert import Conversion, write
from bitnet_model.tensor_writer import NewTensor

def hang():
    print("hanging", flush=True)
    time.sleep(60)

first = NewTensor("first", "F32", (4,), lambda: torch.zeros(4))
second = NewTensor("second", "F32", (4,), hang)
write(Conversion(Path("a"), {}, (first, second), ()), Path(sys.argv[1]), lambda done, total: None)
"""


def test_a_kill_in_the_middle_leaves_no_folder_and_the_next_run_clears_up(tmp_path: Path) -> None:
    target = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(target)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "hanging\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists()
    assert (tmp_path / ".out.partial" / "config.json").exists()
    tensor = NewTensor("first", "F32", (4,), lambda: torch.zeros(4))
    write(Conversion(Path("a"), {}, (tensor,), ()), target, silent)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert load_file(target / "model.safetensors")["first"].tolist() == [0, 0, 0, 0]
