"""Does this machine compute this checkpoint as it should? Three questions, each with a finding a person can read.

    exact       a whole step in one call, verb by verb, in chunks and on one thread: the same bits
    torch       the native wing beside the one on stock torch, which shares no kernel with it
    published   the logits that transformers' own test holds the real microsoft/bitnet-b1.58-2B-4T to

Every forward runs one sequence through a cache of its own. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_model.batch import ForwardBatch
from bitnet_model.config import ModelConfig
from bitnet_model.model import Model, Shortcuts
from bitnet_model.plan import Cache

BLOCK_TOKENS = 32
NUM_IDS = 24
# Two wings round differently, and one activation code that flips is a finite step: random networks, which amplify it
# most, differ by 0.02 to 0.05 of the logits' standard deviation, and a wrong kernel by about 1.
WING_TOLERANCE = 0.15
CLEAR_GAP = 4.0

# transformers, tests/models/bitnet: the prompt, logits.mean(-1) of each token and the first five logits of the first.
PUBLISHED_IDS = (128000, 128000, 1502, 25, 2650, 527, 499, 30, 128009, 72803, 25, 220)
PUBLISHED_MEANS = (
    -1.8665, -1.7681, -1.7043, 3.7446, 2.7730, 4.7133, 0.9768, -3.5018, -12.2812, -8.1477, -10.2571, -8.7610,
)  # fmt: skip
PUBLISHED_FIRST = (5.5815, 4.9154, 1.0478, 4.3869, 3.0112)
# Theirs are bf16 results of another order of operations. Their own tolerance is 0.01; ours leaves room for the int8
# head and for activations that we do not round to bf16.
MEAN_TOLERANCE = 0.05
LOGIT_TOLERANCE = 0.25


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question."""

    name: str
    passed: bool
    detail: str


def sample_ids(config: ModelConfig) -> tuple[int, ...]:
    """A fixed sequence of ids of this vocabulary, short enough for this context."""
    count = min(NUM_IDS, config.max_position_embeddings)
    return tuple((1 + 7919 * index * index) % config.vocab_size for index in range(count))


def logits_of(model: Model, token_ids: Sequence[int], chunk: int | None = None) -> Tensor:
    """f32 [T, V]: the logits after each token of one sequence, computed `chunk` tokens a step (default: all)."""
    num_blocks = -(-len(token_ids) // BLOCK_TOKENS)
    cache = model.new_cache(num_blocks, BLOCK_TOKENS, "bf16")
    chunk = chunk or len(token_ids)
    with torch.inference_mode():
        parts = [
            _step(model, cache, token_ids[start : start + chunk], start, num_blocks)
            for start in range(0, len(token_ids), chunk)
        ]
    return torch.cat(parts)


def _step(model: Model, cache: Cache, token_ids: Sequence[int], start: int, num_blocks: int) -> Tensor:
    count = len(token_ids)
    positions = torch.arange(start, start + count)
    batch = ForwardBatch(
        token_ids=torch.tensor(token_ids),
        positions=positions,
        slots=positions,
        block_tables=torch.arange(num_blocks, dtype=torch.int32)[None],
        lengths=torch.tensor([start + count], dtype=torch.int32),
        starts=torch.tensor([0, count], dtype=torch.int32),
        logit_rows=torch.arange(count),
    )
    return model.logits(model.forward(batch, cache)).cpu().clone()


def check_exact(model: Model, num_threads: int) -> list[Finding]:
    """The promises that hold on one wing, bit for bit."""
    ids = sample_ids(model.config)
    whole = logits_of(model, ids)
    verbs = Model(model.config, model.ops, model.plan)
    verbs.shortcuts = Shortcuts()
    findings = [
        _same("verb by verb = a whole step", whole, logits_of(verbs, ids)),
        _same("in chunks of 5 = at once", whole, logits_of(model, ids, chunk=5)),
        _same("token by token = at once", whole, logits_of(model, ids, chunk=1)),
    ]
    if num_threads > 1:
        model.ops.set_threads(1)
        findings.append(_same(f"1 thread = {num_threads} threads", whole, logits_of(model, ids)))
        model.ops.set_threads(num_threads)
    return findings


def _same(name: str, one: Tensor, other: Tensor) -> Finding:
    if torch.equal(one, other):
        return Finding(name, bool(one.isfinite().all()), f"the same bits in {one.numel()} logits")
    return Finding(name, False, f"logits differ by up to {(one - other).abs().max():.3g}")


def compare_wings(native: Tensor, torch_only: Tensor) -> Finding:
    """Logits [T, V] of two wings for the same ids."""
    name = "native = torch, within rounding"
    error = (native - torch_only).square().mean(-1).sqrt()
    relative = float((error / torch_only.std(-1)).mean())
    top = torch_only.topk(2, -1).values
    clear = top[:, 0] - top[:, 1] > CLEAR_GAP * error
    agreeing = int((native.argmax(-1) == torch_only.argmax(-1))[clear].sum())
    num_clear = int(clear.sum())
    detail = f"rms difference {relative:.4f} of the spread; the same choice at {agreeing} of {num_clear} clear places"
    return Finding(name, relative <= WING_TOLERANCE and agreeing == num_clear, detail)


def has_published_shape(config: ModelConfig) -> bool:
    """Whether this could be microsoft/bitnet-b1.58-2B-4T."""
    shape = (config.hidden_size, config.intermediate_size, config.num_layers, config.vocab_size)
    return shape == (2560, 6912, 30, 128256) and config.family == "bitnet"


def check_published(logits: Tensor) -> list[Finding]:
    """The logits [T, V] of PUBLISHED_IDS against the published ones."""
    return [
        _near("published mean logits", logits.mean(-1).tolist(), PUBLISHED_MEANS, MEAN_TOLERANCE),
        _near("published first logits", logits[0, : len(PUBLISHED_FIRST)].tolist(), PUBLISHED_FIRST, LOGIT_TOLERANCE),
    ]


def _near(name: str, found: Sequence[float], wanted: Sequence[float], tolerance: float) -> Finding:
    """Within `tolerance`, absolute and relative added, as transformers' test counts."""
    excess = [abs(f - w) - tolerance * abs(w) for f, w in zip(found, wanted, strict=True)]
    worst = max(range(len(wanted)), key=lambda index: excess[index])
    detail = f"worst at {worst}: {found[worst]:.4f}, published {wanted[worst]:.4f}, tolerance {tolerance:g}"
    return Finding(name, excess[worst] <= tolerance, detail)
