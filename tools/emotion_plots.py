"""What a run and a model look like, as PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def plot_curves(epochs: list[dict[str, float]], path: Path) -> None:
    """Loss and accuracy over the epochs, in training and in validation."""
    figure, plots = _figure(2, (10, 4))
    for plot, name in zip(plots, ("loss", "accuracy"), strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            plot.plot(range(1, len(epochs) + 1), [epoch[key] for epoch in epochs], marker=".", label=label)
        plot.set(title=name, xlabel="epoch")
        plot.legend()
    figure.savefig(path)


def plot_confusion(matrix: NDArray[Any], names: tuple[str, ...], path: Path) -> None:
    """A confusion matrix: each label's row, what was answered in its columns, as shares of the row."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, (plot,) = _figure(1, (7, 6))
    plot.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    plot.set(xlabel="answer", ylabel="label", xticks=range(len(names)), yticks=range(len(names)))
    plot.set_xticklabels(names, rotation=45, ha="right")
    plot.set_yticklabels(names)
    for (row, column), share in np.ndenumerate(shares):
        plot.text(column, row, f"{share:.0%}", ha="center", va="center", color="white" if share > 0.5 else "black")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _figure(columns: int, size: tuple[int, int]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # noqa: PLC0415  # takes a second, and not every run draws

    figure = Figure(size, layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))
