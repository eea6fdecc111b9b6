"""A machine and some checkpoints in, what can be done with them out."""

import contextlib
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from kit.core.clock import parse_duration
from kit.core.errors import KitError
from kit.core.runtime import cpu_count, device_problem, free_memory_bytes, pick_device
from kit.core.supervise import own_root, own_source
from kit.core.version import VERSION
from kit.infer.checkpoint import find_checkpoints, read_checkpoint
from kit.sound.decode import header_duration_s, list_audio

PACKAGES = ("torch", "torchaudio", "timm", "numpy", "pandas", "scikit-learn", "soundfile", "tqdm")


def examine(
    checkpoints: Sequence[str] | None = None, audio: str | None = None, deadline: str | None = None
) -> str:
    """What is here, what the checkpoints hold, and whether they fit the deadline on these files.

    Options:
        checkpoints: files or patterns of checkpoints to look into
        audio: a folder of clips to submit
        deadline: time limit like 55m
    """
    lines = [f"audiotag-kit {VERSION}, Python {platform.python_version()} on {sys.platform}"]
    lines.append("packages: " + ", ".join(f"{name} {package_version(name)}" for name in PACKAGES))
    lines.append(f"cpu: {cpu_count()} cores, {free_memory_bytes() / 2**30:.1f} GiB of memory free")
    source, here = own_source() or own_root() / "kit", Path.cwd()
    room_gb = shutil.disk_usage(here).free / 1e9
    lines.append(f"paths: the kit runs from {source}; working in {here}, {room_gb:.0f} GB free there")
    for i in range(torch.cuda.device_count()):
        problem = device_problem(torch.device("cuda", i))
        lines.append(f"cuda:{i}: {torch.cuda.get_device_name(i)}, {problem or 'computes'}")
    if not torch.cuda.device_count():
        lines.append("cuda: none")
    paths = find_checkpoints(checkpoints) if checkpoints else []
    lines += [describe_checkpoint(path) for path in paths]
    if audio is not None:
        lines.append(describe_job(Path(audio), paths, deadline))
    return "\n".join(lines)


def describe_job(audio: Path, checkpoints: Sequence[Path], deadline: str | None) -> str:
    """How much there is to hear, and how long that should take by the costs that training measured."""
    files = list_audio(audio)
    seconds = sum(header_duration_s(path) or 0.0 for path in files)
    line = f"{audio}: {len(files)} audio files, {seconds:.0f} s"
    cards = []
    for path in checkpoints:
        with contextlib.suppress(KitError):  # its own line says why
            cards.append(read_checkpoint(path)[0])
    device = pick_device()[0].type
    if not cards or any(card.cost is None or card.cost_device != device for card in cards):
        return f"{line}; what a submission takes is not known here (no cost was measured on {device})"
    needed = sum(card.cost or 0.0 for card in cards) * seconds
    line += f"; the networks should need {needed:.0f} s on a {device} like the one they were trained on"
    if deadline is None:
        return line
    fits = needed * 1.3 + 10 < parse_duration(deadline)
    return (
        f"{line}: {'fits' if fits else 'DOES NOT FIT'} into {deadline}, with three tenths and 10 s to spare"
    )


def package_version(name: str) -> str:
    """A package's version, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def describe_checkpoint(path: Path) -> str:
    """One line on a checkpoint, also where it cannot be read."""
    try:
        card, tensors = read_checkpoint(path)
    except KitError as error:
        return f"{path}: NOT USABLE: {error}"
    millions = sum(t.numel() for t in tensors.values()) / 1e6
    score = f"oof lwlrap {card.oof_score:.4f}" if card.oof_score is not None else "no oof score"
    kind = f"{card.score} scores" + (", calibrated" if card.calibration else "")
    return (
        f"{path}: {card.network.get('family')}, {millions:.2f} M values, {len(card.classes)} classes, "
        f"fold {card.fold}, {score}, {kind}, listens in mode {card.listening.mode} at {card.frontend.sample_rate} Hz"
    )
