"""Taggers and clips in, blended probabilities of every clip out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.audio.decode import Decoder, Sound, list_audio
from kit.audio.windows import InferenceConfig
from kit.core.clock import advance, progress_bar
from kit.core.errors import KitError
from kit.core.runtime import pick_device, tune_process
from kit.infer.ensemble import EnsembleMember, by_source, collect_frontends, predict_ensemble
from kit.infer.loader import Source, SpectrogramLoader
from kit.infer.predictor import Predictor
from kit.infer.rows import RowScores, common_classes
from kit.infer.stack import StackRows, open_models
from kit.infer.template import RowPlan, Template
from kit.models.checkpoint import NetworkBuilder
from kit.models.tagger import Tagger


@dataclass(frozen=True)
class Predictions:
    """What an ensemble says of clips.

    `failures` tells, by name, why a clip has the prior, or lacks a model's answer.
    Shape:  probabilities (n, K), in the order of `names` and `classes`
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    failures: dict[str, str]

    def __repr__(self) -> str:
        told = f"{len(self.names)} clips, {len(self.classes)} classes, {len(self.failures)} failures"
        return f"{told}: probabilities (n, K); to_frame() makes a table"

    def to_frame(self) -> "object":
        """A pandas DataFrame: fname, then a column per class."""
        import pandas

        frame = pandas.DataFrame(self.probabilities, columns=list(self.classes))
        frame.insert(0, "fname", list(self.names))
        return frame


def name_sources(clips: str | Path | Sequence[str | Path | Sound]) -> tuple[list[str], list[Source]]:
    """Clips and their names: files by their path, a folder's by that in it, sounds by number."""
    if isinstance(clips, str | Path):
        paths = list_audio(Path(clips))
        return [path.relative_to(clips).as_posix() for path in paths], list(paths)
    names = [f"clip {i}" if isinstance(clip, Sound) else str(clip) for i, clip in enumerate(clips)]
    return names, [clip if isinstance(clip, Sound) else Path(clip) for clip in clips]


def predict_clips(
    checkpoints: str | Path | Tagger | Sequence[str | Path | Tagger],
    clips: str | Path | Sequence[str | Path | Sound],
    blend: str = "mean",
    weights: Sequence[float] | None = None,
    inference: InferenceConfig | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch_frames: int | None = None,
    precision: str = "float32",
    progress: bool = False,
    decoders: Sequence[Decoder] | None = None,
    networks: Mapping[str, NetworkBuilder] | None = None,
) -> Predictions:
    """Probabilities of every clip by an ensemble of checkpoints or taggers.

    `clips` is a folder, or files and decoded sounds; `listening` overrides how every model hears.
    Shape:  -> probabilities (n, K)
    Errors: KitError for what cannot be loaded; clips that cannot be heard are in `failures`
    """
    tune_process()
    chosen, _ = pick_device(device)
    models, stack = open_models(checkpoints, blend, weights)
    members = []
    for model in models:
        predictor = Predictor(model.build(networks), chosen, batch_frames, precision, inference)
        members.append(EnsembleMember(model.name, predictor, weight=model.weight, run=model.run))
    names, sources = name_sources(clips)
    template = Template("fname", tuple(names), common_classes([m.card for m in members]))
    plan = RowPlan("name", tuple(range(len(names))), (None,) * len(names), ())
    plain = (template, plan, members)
    rows = StackRows(stack, *plain) if stack else RowScores(*plain, blend)
    loader = SpectrogramLoader(
        sources, collect_frontends(members, chosen), chosen, threads=threads, decoders=decoders
    )
    with progress_bar(len(members) * loader.total_s, "predict", "s of audio", progress) as bar:
        predict_ensemble(members, loader, rows.add, after_chunk=lambda _, seconds: advance(bar, seconds))
    loader.close()
    reasons: dict[int, str] = {}
    for member in members:
        if member.failure:
            raise KitError(f"{member.name} failed: {member.failure}")
        reasons |= {i: f"{member.name}: {reason}" for i, reason in member.failed_clips.items()}
    failures = by_source(reasons | loader.failures, names)
    return Predictions(template.ids, template.classes, rows.blend().astype(np.float32), failures)
