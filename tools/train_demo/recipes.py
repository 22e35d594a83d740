"""The two recipes: what two CPU cores can train in hours, and what one large GPU can in half an hour."""

from dataclasses import dataclass

from .model import DemoConfig


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes, data and rates. `rows_per_pass` rows go through the model at once, on each of `num_workers` threads."""

    config: DemoConfig
    min_ease: float  # books below this simplicity score are left out
    rows_per_step: int
    rows_per_pass: int
    num_workers: int
    muon_lr: float
    adam_lr: float
    minutes: float


RECIPES = {
    # 5.8 M parameters, 3.3 MB exported.
    "cpu": Recipe(DemoConfig(), 48.0, 16, 2, 2, 0.02, 0.004, 120.0),
    # 54 M parameters, 23 MB exported; every book of the corpus. Not run yet.
    "gpu": Recipe(
        DemoConfig(vocab_size=8192, hidden_size=640, num_layers=10, num_heads=10, num_kv_heads=5, ffn_size=1920),
        0.0,
        128,
        32,  # an estimate: about 20 GB of activations
        1,
        0.02,
        0.003,
        27.0,
    ),
}
ROW_TOKENS = 512
