"""A seed in, a small set of synthetic clips with its tables out."""

import math
from pathlib import Path

import numpy as np

from kit.core.csvtext import write_rows

TOY_RATE = 22050


def toy_event(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """A sound event of n samples, at most 1 in magnitude."""
    t = np.arange(n) / TOY_RATE
    hz = float(np.exp(rng.uniform(math.log(400), math.log(3000))))
    sweep = hz * (t + t * t / max(t[-1], 1e-3))
    carrier = np.sin(2 * np.pi * hz * t)
    gates = (t * rng.uniform(6, 10)) % 1.0
    sounds = {
        "tone": carrier,
        "chirp_up": np.sin(2 * np.pi * sweep),
        "chirp_down": np.sin(2 * np.pi * sweep[::-1]),
        "warble": np.sin(2 * np.pi * hz * t + 8 * np.sin(2 * np.pi * 7 * t)),
        "hiss": np.diff(rng.normal(0, 0.3, n + 1)),
        "clicks": rng.normal(0, 1.0, n) * (gates < 0.03),
        "pulses": carrier * (gates < 0.4),
        "rumble": np.convolve(rng.normal(0, 1.0, n), np.ones(64) / 16, mode="same"),
    }
    wave = sounds[kind] * np.minimum(1.0, np.minimum(t, t[::-1]) * 50 + 0.02)
    return np.asarray(wave / max(1.0, float(np.abs(wave).max())))


TOY_CLASSES = ("chirp_down", "chirp_up", "clicks", "hiss", "pulses", "rumble", "tone", "warble")


def toy_clip(seconds: float, labels: list[str], rng: np.random.Generator) -> np.ndarray:
    """A clip with its events somewhere in it, over faint noise."""
    n = max(16, int(seconds * TOY_RATE))
    wave = rng.normal(0, 10 ** rng.uniform(-3.0, -2.0), n)
    for label in labels:
        length = min(n, int(TOY_RATE * rng.uniform(0.25, 2.0)))
        start = int(rng.integers(0, n - length + 1))
        wave[start : start + length] += toy_event(label, length, rng) * 10 ** rng.uniform(-1.0, -0.3)
    return np.asarray(wave / max(1.0, float(np.abs(wave).max())), np.float32)


def make_toy_set(folder: Path, clips: int = 160, test: int = 60, seed: int = 0) -> None:
    """Write train/ and test/ with clips of 0.3 to 30 s, and their tables.

    Units: WAV, 22,050 Hz, 16 bit, mono
    """
    import soundfile

    rng = np.random.default_rng(seed)
    for part, count, table in (("train", clips, "train.csv"), ("test", test, "test_truth.csv")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        rows = [("fname", "labels")]
        for i in range(count):
            seconds = float(np.clip(np.exp(rng.normal(math.log(3.0), 0.9)), 0.3, 30.0))
            labels = sorted(rng.choice(TOY_CLASSES, size=int(rng.integers(1, 4)), replace=False).tolist())
            name = f"{part}_{i:04d}.wav"
            soundfile.write(folder / part / name, toy_clip(seconds, labels, rng), TOY_RATE, subtype="PCM_16")
            rows.append((name, ",".join(labels)))
        write_rows(folder / table, rows)
    zeros = "0" * len(TOY_CLASSES)
    template = [("fname", *TOY_CLASSES), *((name, *zeros) for name, _ in rows[1:])]
    write_rows(folder / "sample_submission.csv", template)
