"""Runs, or a submission's report, in, pictures of how they went out: curves, rounds, a timeline."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.core.errors import KitError
from kit.infer.work import read_report
from kit.labels.bootstrap import bootstrap_interval
from kit.labels.metrics import lwlrap
from kit.learn.journal import RunOnDisk, open_run
from kit.pictures.figure import CURVE_COLOURS, Drawing, new_figure, new_rows, shown_name
from kit.pictures.scores import with_reach

STAGES = {"headers": "read headers", "models": "build models", "decode": "decode", "frontend": "front end"}


def draw_history(runs: Sequence[RunOnDisk]) -> Drawing:
    """Loss of training and lwlrap of validation over epochs: a colour per run, or per fold of one."""
    figure, pair = new_figure(10, 4, 1, 2)
    for axes, measure in zip(pair, ("loss", "lwlrap"), strict=True):
        drawn: dict[str, Any] = {}
        for folder, epochs in ((run.folder, epochs) for run in runs for epochs in run.history):
            name = shown_name(str(folder) if len(runs) > 1 else f"fold {epochs['fold'].iloc[0]}")
            colour = CURVE_COLOURS[[*drawn, name].index(name) % len(CURVE_COLOURS)]
            rows = epochs.dropna(subset=measure)
            (drawn[name],) = axes.plot(rows["epoch"], rows[measure], ".-", color=colour, alpha=0.8)
        axes.set(xlabel="epoch", ylabel=measure)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(drawn.values(), drawn, frameon=False)
    return Drawing(figure)


def draw_rounds(run: str | Path) -> Drawing:
    """The lwlrap out of fold of each round of relabelling, by the labels as given, and what its labels held."""
    folder, home = Path(run), Path(run) / "rounds"
    paths = {int(path.parts[-3]): path for path in home.glob("*/labels/relabel.json")}
    counts = {r: json.loads(path.read_text(encoding="utf-8"))["counts"] for r, path in sorted(paths.items())}
    last = max(counts, default=0)
    homes = {r: home / str(r) for r in range(last)} | {last: folder}
    there = [r for r in homes if counts and (homes[r] / "oof.csv").is_file()]
    if not there:
        raise KitError(f"{folder} holds no rounds (rounds/0/oof.csv): give a run of relabel.rounds > 0.")
    opened = [open_run(homes[r], home / "folds.csv") for r in there]
    value, *reach = with_reach(bootstrap_interval(lwlrap, each.truth, each.scores) for each in opened)
    figure, (left, right) = new_figure(10, 4, 1, 2, sharex=True)
    left.errorbar(there, value, reach, fmt="o-", capsize=3)
    left.set(xlabel="round", title="lwlrap and its 0.95 interval", xticks=[*homes])
    for word in dict.fromkeys(word for each in counts.values() for word in each):
        right.plot([*counts], [each.get(word, 0) for each in counts.values()], "o-", label=word)
    right.set(xlabel="round", title="clips or windows in its labels", ylim=(0, None))
    right.legend(frameon=False)
    return Drawing(figure)


def draw_timeline(report: str | Path | Mapping[str, Any]) -> Drawing:
    """When a submission read, decoded, asked each model and wrote, in seconds since its work began.

    Give its CSV, the .json beside it, or a Submission's report. A line is the deadline, where that was near.
    """
    told = report if isinstance(report, Mapping) else read_report(Path(report))
    if "spans" not in told:
        raise KitError("no report that tells when what was done: submit again, with this kit.")
    lanes = [(name, told["spans"].get(stage, [])) for stage, name in STAGES.items()]
    models = sorted(told["models"], key=lambda model: model["spans"][:1])
    lanes += [(model["checkpoint"], model["spans"]) for model in models]
    lanes += [("write CSV", told["spans"].get("write", []))]
    sums = [f"{sum(b - a for a, b in spans):.1f} s  {name}" for name, spans in lanes]
    figure, (axes,) = new_rows(sums, 10)
    for row, (_, spans) in enumerate(lanes):
        colour = CURVE_COLOURS[min(row, len(STAGES))]
        axes.broken_barh([(a, b - a) for a, b in spans], (row - 0.4, 0.8), color=colour)
    title = f"{told['state']}, {told['seconds_total']:.1f} s"
    if limit := told["deadline_s"]:
        title += f" of {limit:.1f} s to the deadline"
        if limit < 2 * told["seconds_total"]:
            axes.axvline(limit, color="k", linestyle="--")
    axes.set(xlabel="seconds", title=title, xlim=(0, None))
    return Drawing(figure)
