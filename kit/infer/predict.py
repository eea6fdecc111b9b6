'''Predict the blended probabilities of clips with an ensemble.'''

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.audio.decode import Decoder, Sound, list_audio
from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError, check_kind
from kit.core.runtime import start_runtime
from kit.infer.ensemble import collect_frontends, predict_under_bar
from kit.infer.loader import Source, SpectrogramLoader
from kit.infer.planner import EnsembleMember, reasons_by_name
from kit.infer.predictor import Predictor
from kit.infer.rows import check_members, common_classes
from kit.infer.stack import EnsembleRows, open_models
from kit.infer.template import RowPlan, Template
from kit.models.tagger import NetworkBuilder, Tagger


@dataclass(frozen=True)
class Predictions:
    '''An ensemble's predictions; `failures` says, by name, why a clip has the prior or lacks a model.

    Shape:  probabilities (n, K), in the order of `names` and `classes`
    '''

    names: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    failures: dict[str, str]

    def __repr__(self) -> str:
        counts = f'{len(self.names)} clips, {len(self.classes)} classes, {len(self.failures)} failures'
        return f'{counts}: names (n,), classes (K,), probabilities (n, K)'


def name_sources(clips: str | Path | Sequence[str | Path | Sound]) -> tuple[list[str], list[Source]]:
    '''Name clips: files by their path, those of a folder by their path in it, sounds by number.'''
    if isinstance(clips, Sound):
        clips = [clips]
    if isinstance(clips, str | Path):
        paths = list_audio(Path(clips))
        return [path.relative_to(clips).as_posix() for path in paths], list(paths)
    cure = 'give a folder, or a list of files and sounds; Sound(wave, sample_rate) makes one of a wave'
    check_kind('clips', [clips], list | tuple, cure)
    check_kind('a clip', clips, str | Path | Sound, cure)
    waves = [clip.wave for clip in clips if isinstance(clip, Sound)]
    check_kind('the wave of a sound', waves, np.ndarray, 'give a numpy array')
    names = [f'clip {i}' if isinstance(clip, Sound) else str(clip) for i, clip in enumerate(clips)]
    return names, [clip if isinstance(clip, Sound) else Path(clip) for clip in clips]


def predict_clips(
    checkpoints: str | Path | Tagger | Sequence[str | Path | Tagger],
    clips: str | Path | Sequence[str | Path | Sound],
    blend: str = 'mean',
    weights: Sequence[float] | None = None,
    inference: InferenceConfig | None = None,
    device: str | None = None,
    threads: int | None = None,
    batch_frames: int | None = None,
    precision: str = 'float32',
    progress: bool = False,
    decoders: Sequence[Decoder] | None = None,
    networks: Mapping[str, NetworkBuilder] | None = None,
) -> Predictions:
    '''Predict the probabilities of every clip with an ensemble of checkpoints or taggers.

    `clips` is a folder, or files and decoded sounds; `inference` overrides every model's own settings.
    Errors: KitError for what cannot be loaded, and for a model that fails; clips that cannot be read are in `failures`
    '''
    check_kind('inference', [inference], InferenceConfig | None, 'give InferenceConfig(mode=...)')
    runtime = start_runtime(device, threads, progress)
    models, stacks = open_models(checkpoints, weights)
    members = []
    for model in models:
        tagger = model.build(networks)
        predictor = Predictor(tagger, runtime.device, batch_frames, precision, inference, fuse=True)
        member = EnsembleMember(model.name, predictor, weight=model.weight, stack=model.stack, run=model.run)
        members.append(member)
    names, sources = name_sources(clips)
    template = Template('fname', tuple(names), common_classes([member.card for member in members]))
    plan = RowPlan('name', tuple(range(len(names))), (None,) * len(names), ())
    check_members(members, blend, plan)
    rows = EnsembleRows(stacks, template, plan, members, blend)
    frontends = collect_frontends(members, runtime.device)
    loader = SpectrogramLoader(sources, frontends, runtime.device, threads=runtime.threads, decoders=decoders)
    loader.read_headers()
    for member, clip, logits in predict_under_bar(members, loader, 'predict', runtime.progress):
        rows.add(member, clip, logits)
    reasons: dict[int, str] = {}
    for member in members:
        if member.failure:
            raise KitError(f'{member.name} failed: {member.failure}')
        reasons |= {clip: f'{member.name}: {reason}' for clip, reason in member.failed_clips.items()}
    loader.print_failures(names)
    failures = reasons_by_name(reasons | loader.failures, names)
    return Predictions(template.ids, template.classes, rows.blend().astype(np.float32), failures)
