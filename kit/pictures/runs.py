"""Runs in, their learning curves out."""

from collections.abc import Sequence

from kit.learn.journal import RunOnDisk
from kit.pictures.figure import CURVE_COLOURS, Drawing, new_figure


def draw_history(runs: Sequence[RunOnDisk]) -> Drawing:
    """Loss and lwlrap over epochs, a colour per run, a line per training."""
    figure, pair = new_figure(10, 4, 1, 2)
    for axes, name in zip(pair, ("loss", "lwlrap"), strict=True):
        for number, run in enumerate(runs):
            colour = CURVE_COLOURS[number % len(CURVE_COLOURS)]
            axes.plot([], [], color=colour, label=str(run.folder))
            for epochs in run.history:
                axes.plot(
                    "epoch", name, ".-", data=epochs.dropna(subset=name), color=colour, alpha=0.7, label="_"
                )
        axes.set(xlabel="epoch", ylabel=name)
    axes.legend()
    return Drawing(figure)
