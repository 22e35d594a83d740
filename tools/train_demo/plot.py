"""The loss curve of a run as a picture; matplotlib is optional (extra `train`)."""

import json
from pathlib import Path


def plot_loss(log: Path, out: Path) -> None:
    """Draw mean training loss, and that of held-out text, over tokens from log.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot([r["tokens"] / 1e6 for r in records], [r["loss"] for r in records], linewidth=1)
    watched = [r for r in records if "held_out" in r]
    if watched:
        axes.plot([r["tokens"] / 1e6 for r in watched], [r["held_out"] for r in watched], "o-", markersize=2)
        axes.legend(["training rows", "held-out text"])
    axes.set(xlabel="million tokens", ylabel="nats per target token")
    axes.grid(alpha=0.3)
    figure.savefig(out, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
