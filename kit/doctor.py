"""A machine and some checkpoints in, what can be done with them out."""

import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from kit.core.errors import KitError
from kit.core.runtime import cpu_count, device_problem, free_memory_bytes
from kit.core.version import VERSION
from kit.infer.checkpoint import find_checkpoints, read_checkpoint
from kit.sound.decode import list_audio

PACKAGES = ("torch", "torchaudio", "timm", "numpy", "pandas", "scikit-learn", "soundfile", "tqdm")


def examine(checkpoints: Sequence[str] | None = None, audio: str | None = None) -> str:
    """What is here, and what the checkpoints hold.

    Options:
        checkpoints: files or patterns of checkpoints to look into
        audio: a folder of clips to count
    """
    lines = [f"audiotag-kit {VERSION}, Python {platform.python_version()} on {sys.platform}"]
    lines.append("packages: " + ", ".join(f"{name} {package_version(name)}" for name in PACKAGES))
    lines.append(f"cpu: {cpu_count()} cores, {free_memory_bytes() / 2**30:.1f} GiB of memory free")
    for i in range(torch.cuda.device_count()):
        problem = device_problem(torch.device("cuda", i))
        lines.append(f"cuda:{i}: {torch.cuda.get_device_name(i)}, {problem or 'computes'}")
    if not torch.cuda.device_count():
        lines.append("cuda: none")
    for path in find_checkpoints(checkpoints) if checkpoints else []:
        lines.append(describe_checkpoint(path))
    if audio is not None:
        lines.append(f"{audio}: {len(list_audio(Path(audio)))} audio files")
    return "\n".join(lines)


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
