"""The two recipes: what two CPU cores can train in hours, and what one large GPU can in minutes."""

from dataclasses import dataclass

from .model import DemoConfig

Mix = dict[str, float]
"""Share of rows by set of rows."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes, data and rates. `rows_per_pass` rows go through the model at once, on each of `num_workers` threads.

    `first_mix` holds until `chat_from` (in settings), `second_mix` after it. A little chat from the start costs
    nothing and teaches the format.
    """

    config: DemoConfig
    min_ease: float  # books below this simplicity score are left out
    row_tokens: int
    rows_per_step: int
    rows_per_pass: int
    num_workers: int
    muon_lr: float
    adam_lr: float
    minutes: float
    first_mix: Mix
    second_mix: Mix


RECIPES = {
    # 5.8 M parameters, 3.3 MB exported.
    "cpu": Recipe(
        DemoConfig(),
        min_ease=48.0,
        row_tokens=512,
        rows_per_step=16,
        rows_per_pass=2,
        num_workers=2,
        muon_lr=0.02,
        adam_lr=0.004,
        minutes=120.0,
        first_mix={"story": 0.45, "tale": 0.08, "book": 0.27, "chat": 0.2},
        second_mix={"story": 0.12, "tale": 0.03, "book": 0.25, "chat": 0.6},
    ),
    # 54 M parameters, 23 MB exported; every book of the corpus, which is most of it, and the few stories more often.
    "gpu": Recipe(
        DemoConfig(vocab_size=8192, hidden_size=640, num_layers=10, num_heads=10, num_kv_heads=5, ffn_size=1920),
        min_ease=0.0,
        row_tokens=1024,
        rows_per_step=64,
        rows_per_pass=64,
        num_workers=1,
        muon_lr=0.02,
        adam_lr=0.003,
        minutes=3.3,
        first_mix={"story": 0.03, "tale": 0.02, "book": 0.91, "chat": 0.04},
        second_mix={"story": 0.05, "tale": 0.02, "book": 0.68, "chat": 0.25},
    ),
}
