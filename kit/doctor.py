"""A machine and some checkpoints in, what can be done with them out."""

import contextlib
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from kit.audio.decode import header_duration_s, list_audio
from kit.core.clock import parse_duration
from kit.core.errors import KitError
from kit.core.runtime import VERSION, cpu_count, device_problem, free_memory_bytes, pick_device
from kit.core.worker import source_file, source_root
from kit.infer.stack import ModelSpec, open_models
from kit.models.checkpoint import find_checkpoints
from kit.models.tagger import Tagger, TaggerCard

PACKAGES = "torch torchaudio timm numpy pandas scikit-learn soundfile tqdm"


def run_doctor(
    checkpoints: Sequence[str] | None = None, audio: str | None = None, deadline: str | None = None
) -> str:
    """What is here, what the checkpoints hold, and whether they fit the deadline on these files.

    Options:
        checkpoints: files or patterns of checkpoints to look into
        audio: a folder of clips to submit
        deadline: time limit like 55m

    Errors: KitError, after all was printed, where a checkpoint cannot be used
    """
    source, here = source_file() or source_root() / "kit", Path.cwd()
    lines = [
        f"audiotag-kit {VERSION}, Python {platform.python_version()} on {sys.platform}",
        "packages: " + ", ".join(f"{name} {package_version(name)}" for name in PACKAGES.split()),
        f"cpu: {cpu_count()} cores, {free_memory_bytes() / 2**30:.1f} GiB of memory free",
        f"paths: the kit is {source}; working in {here}, {shutil.disk_usage(here).free / 1e9:.0f} GB free there",
    ]
    lines += [
        f"cuda:{i}: {torch.cuda.get_device_name(i)}, {device_problem(torch.device('cuda', i)) or 'computes'}"
        for i in range(torch.cuda.device_count())
    ] or ["cuda: none"]
    paths, cards, bad = find_checkpoints(checkpoints) if checkpoints else [], [], 0
    for path in paths:
        try:
            models, made = open_models(path)
            told = [f"{model.name}: {describe_model(model)}" for model in models]
            if made:
                lines.append(f"{path}: a stack, {made.card.kind}, oof lwlrap {made.card.oof_score}, of")
            lines += told
            cards += [model.card for model in models]
        except KitError as error:
            bad += 1
            lines.append(f"{path}: NOT USABLE: {error}")
    if audio is not None:
        lines.append(describe_job(Path(audio), cards, deadline))
    if bad:
        print(*lines, sep="\n", flush=True)
        raise KitError(f"{bad} of {len(paths)} checkpoints cannot be used, as said above.")
    return "\n".join(lines)


def describe_job(audio: Path, cards: Sequence[TaggerCard], deadline: str | None) -> str:
    """How much there is to hear, and how long it should take."""
    files = list_audio(audio)
    seconds = sum(header_duration_s(path) or 0.0 for path in files)
    line = f"{audio}: {len(files)} audio files, {seconds:.0f} s"
    device = pick_device()[0].type
    if not cards or any(card.cost is None or card.cost_device != device for card in cards):
        return f"{line}; no cost was measured on {device}: its time is not known"
    needed = sum(card.cost or 0.0 for card in cards) * seconds
    line += f"; the networks should need {needed:.0f} s on a {device} like that of training"
    if deadline is None:
        return line
    fits = "fits" if needed * 1.3 + 10 < parse_duration(deadline) else "DOES NOT FIT"
    return f"{line}: {fits} into {deadline}, 30 % and 10 s spared"


def package_version(name: str) -> str:
    """A package's version."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return "missing"


def describe_model(model: ModelSpec) -> str:
    """A line on a model. Errors: as load_tagger, but for networks of one's own"""
    card, family = model.card, str(model.card.network.get("family"))
    if not family.startswith("custom:"):
        model.build()
    tensors = {} if isinstance(model.holds, Tagger) else model.holds["tensors"]
    millions = sum(t.numel() for t in tensors.values()) / 1e6
    score = "no oof score" if card.oof_score is None else f"oof lwlrap {card.oof_score:.4f}"
    kind = f"{card.output} scores{', calibrated' * bool(card.calibration)}"
    return (
        f"{family}, {millions:.2f} M values, {len(card.classes)} classes, fold {card.fold}, {score}, {kind}, "
        f"listens in mode {card.inference.mode} at {card.frontend.sample_rate} Hz"
    )
