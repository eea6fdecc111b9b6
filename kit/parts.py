"""A kind of part in, what the kit has of it out: everything that systems are composed of, by name."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kit.audio.augment import WaveAugmentConfig
from kit.audio.frontend import FrontendConfig
from kit.audio.mixup import MixupConfig
from kit.audio.normalize import PcenConfig
from kit.audio.specaugment import SpecAugmentConfig
from kit.audio.windows import InferenceConfig
from kit.core.config import Config
from kit.core.errors import KitError, closest
from kit.infer.blend import BLENDS, blend_scores, choose_windows, fit_class_weights, fit_weights
from kit.infer.gate import STEPS, RowSet, evaluate_step
from kit.infer.postprocess import estimate_prevalences, scale_odds, smooth_neighbours, weigh_by_recording
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from kit.labels.bootstrap import bootstrap_difference, bootstrap_interval
from kit.labels.boxes import class_bands_hz, read_boxes, recording_labels, window_targets
from kit.labels.folds import make_folds
from kit.labels.metrics import (
    auc_per_class,
    average_precision_per_class,
    log_losses,
    lwlrap,
    lwlrap_flat,
    lwlrap_per_class,
    top1_accuracy,
)
from kit.labels.soft import (
    SoftLabels,
    align_soft_labels,
    fill_unknown,
    nearest_window,
    read_soft_labels,
    write_soft_labels,
)
from kit.labels.table import classes_of_template, clip_labels, read_clip_table
from kit.models.checkpoint import load_tagger, save_tagger, wrap_network
from kit.models.families import FAMILIES, build_network
from kit.models.heads import POOLS, RECURRENCES, FrameAttention, GeneralisedMean, HeadConfig
from kit.models.network import receptive_field
from kit.models.stackers import STACKERS
from kit.models.tagger import TaggerCard, build_tagger
from kit.plots.clips import draw_clip, draw_contact_sheet, draw_filters, draw_lengths
from kit.plots.labels import draw_labels
from kit.plots.runs import (
    draw_calibration,
    draw_classes,
    draw_confusion,
    draw_history,
    draw_self_training,
    draw_timeline,
)
from kit.train.losses import LOSSES, average_loss, outlier_dropping_loss, soft_auc_loss, sum_by_source
from kit.train.oof import load_run
from kit.train.optim import OptimConfig
from kit.train.pseudo_labels import SelfTrainingConfig
from kit.train.recipe import Recipe, SamplingConfig, SourceConfig, System
from kit.train.recipes import SYSTEMS
from kit.train.run import flat_settings
from kit.train.stacking import StackConfig


def by_name(*parts: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Functions and classes under their own names."""
    return {part.__name__: part for part in parts}


PARTS: dict[str, Mapping[str, Any]] = {
    "systems": SYSTEMS,
    "settings": by_name(
        FrontendConfig, PcenConfig, InferenceConfig, HeadConfig, TaggerCard, Recipe, SourceConfig, SamplingConfig,
        OptimConfig, WaveAugmentConfig, SpecAugmentConfig, MixupConfig, SelfTrainingConfig, StackConfig,
    ),
    "taggers": by_name(
        build_tagger, wrap_network, save_tagger, load_tagger, build_network, receptive_field, predict_clips, submit
    ),
    "families": FAMILIES,
    "heads": {**POOLS, "gem": GeneralisedMean, "attention": FrameAttention, **dict.fromkeys(RECURRENCES)},
    "second-level": {name: module for name, (_, module) in STACKERS.items()},
    "losses": {**LOSSES, **by_name(outlier_dropping_loss, soft_auc_loss, average_loss, sum_by_source)},
    "labels": by_name(
        read_clip_table, clip_labels, classes_of_template, SoftLabels, read_boxes, window_targets, recording_labels,
        make_folds, class_bands_hz, read_soft_labels, write_soft_labels, align_soft_labels, fill_unknown,
        nearest_window,
    ),
    "metrics": by_name(
        lwlrap, lwlrap_per_class, lwlrap_flat, auc_per_class, average_precision_per_class, log_losses, top1_accuracy,
        bootstrap_interval, bootstrap_difference,
    ),
    "blends": {**BLENDS, **by_name(blend_scores, fit_weights, fit_class_weights, choose_windows)},
    "steps": {
        **STEPS,
        **by_name(evaluate_step, RowSet, scale_odds, estimate_prevalences, smooth_neighbours, weigh_by_recording),
    },
    "pictures": by_name(
        load_run, draw_history, draw_self_training, draw_classes, draw_confusion, draw_calibration, draw_clip, draw_filters,
        draw_lengths, draw_labels, draw_timeline, draw_contact_sheet,
    ),
}  # fmt: skip


def first_sentence(part: Any) -> str:
    """What a part says of itself, in one line; nothing for what has no words of its own."""
    if isinstance(part, System):
        return part.source
    doc = inspect.getdoc(part) if inspect.isclass(part) or inspect.isfunction(part) else None
    return (doc or "").partition("\n")[0]


def settings_of(config: type[Config]) -> list[str]:
    """A line per setting: its default, what it means, its choices or bounds."""
    lines = []
    for item in dataclasses.fields(config):
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        shown = f"{type(default).__name__}(...)" if dataclasses.is_dataclass(default) else repr(default)
        bounds = (
            f"{name} {item.metadata[name]}" for name in ("low", "high", "choices") if item.metadata.get(name)
        )
        lines.append(f"  {item.name} = {shown}: {'; '.join([item.metadata.get('help', ''), *bounds])}")
    return lines


def tell_part(name: str, part: Any) -> str:
    """Everything that one part says of itself."""
    if isinstance(part, System):
        settings = (f"  {key}={value}" for key, value in flat_settings(part.to_dict()).items())
        return "\n".join([f"{name}: {part.source}", *settings])
    if not first_sentence(part):
        return f"{name} {', '.join(flag for flag, on in vars(part).items() if on is True)}".rstrip()
    title = f"{part.__name__}{inspect.signature(part) if inspect.isfunction(part) else ''}"
    lines = settings_of(part) if inspect.isclass(part) and issubclass(part, Config) else []
    return "\n".join([title, inspect.getdoc(part) or "", *lines])


def list_parts(name: str | None = None) -> str:
    """The names of everything that a system is composed of, one kind with a sentence for each, or one part whole.

    Options:
        name: a kind, e.g. losses, or a part, e.g. bce or FrontendConfig
    """
    if name is None:
        return "\n".join(f"{kind:12} {', '.join(parts)}" for kind, parts in PARTS.items())
    if name in PARTS:
        width = max(map(len, PARTS[name]))
        lines = (f"{part:{width}}  {first_sentence(one)}".rstrip() for part, one in PARTS[name].items())
        return "\n".join(lines)
    told = [tell_part(name, parts[name]) for parts in PARTS.values() if name in parts]
    if not told:
        hint = closest(name, [*PARTS, *(part for parts in PARTS.values() for part in parts)])
        near = hint.partition("the choices")[0].strip() or "without a name, all are listed."
        raise KitError(f"no part or kind of parts is {name!r}: {near}")
    return "\n\n".join(told)
