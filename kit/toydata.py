"""A seed in, small sets of synthetic clips or soundscapes with their tables out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.files import write_rows
from kit.labels.table import class_names, read_clip_table, split_labels

TOY_RATE = 22050


def toy_event(
    kind: str, n: int, rng: np.random.Generator, low_hz: float = 400.0, high_hz: float = 3000.0
) -> np.ndarray:
    """A sound event of n samples, at most 1 in magnitude."""
    t = np.arange(n) / TOY_RATE
    hz = float(np.exp(rng.uniform(math.log(low_hz), math.log(high_hz))))
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
# Species sing each song in two bands: neither song nor pitch alone tells them apart. Hertz: where a band begins.
TOY_SONGS = ("pulses", "warble", "tone") * 2
TOY_LOW_HZ = (500.0, 800.0, 1280.0, 2048.0, 3277.0, 5243.0)
BOX_HEADER = ("recording_id", "species_id", "songtype_id", "t_min", "f_min", "t_max", "f_max")


def toy_clip(seconds: float, labels: list[str], rng: np.random.Generator) -> np.ndarray:
    """A clip with its events somewhere in it, over faint noise."""
    n = max(16, int(seconds * TOY_RATE))
    wave = rng.normal(0, 10 ** rng.uniform(-3.0, -2.0), n)
    for label in labels:
        length = min(n, int(TOY_RATE * rng.uniform(0.25, 2.0)))
        start = int(rng.integers(0, n - length + 1))
        wave[start : start + length] += toy_event(label, length, rng) * 10 ** rng.uniform(-1.0, -0.3)
    return np.asarray(wave / max(1.0, float(np.abs(wave).max())), np.float32)


def make_toy_set(folder: Path, clips: int = 160, test: int = 60, seed: int = 0, noisy: int = 0) -> None:
    """Write train/ and test/ with clips of 0.3 to 30 s, and their tables; with `noisy`, noisy/ too, labelled badly.

    Units: WAV, 22,050 Hz, 16 bit, mono
    """
    import soundfile

    rng = np.random.default_rng(seed)
    parts = {"train": (clips, "train.csv"), "test": (test, "test_truth.csv"), "noisy": (noisy, "noisy.csv")}
    for part, (count, table) in parts.items() if noisy else [*parts.items()][:2]:
        (folder / part).mkdir(parents=True, exist_ok=True)
        rows = [("fname", "labels")]
        for i in range(count):
            seconds = float(np.clip(np.exp(rng.normal(math.log(3.0), 0.9)), 0.3, 30.0))
            labels = sorted(rng.choice(TOY_CLASSES, size=int(rng.integers(1, 4)), replace=False).tolist())
            name = f"{part}_{i:04d}.wav"
            soundfile.write(folder / part / name, toy_clip(seconds, labels, rng), TOY_RATE, subtype="PCM_16")
            rows.append((name, ",".join(labels)))
        write_rows(folder / table, rows)
        if part == "test":
            write_zeros(folder, rows, TOY_CLASSES)
    if noisy:
        spoilt = spoil_labels(read_clip_table(folder / "noisy.csv"), seed=seed)
        write_rows(folder / "noisy.csv", [[*spoilt], *spoilt.itertuples(index=False)])


def write_zeros(folder: Path, rows: Sequence[tuple[str, ...]], classes: Sequence[str]) -> None:
    """A sample submission for a table's rows, its header first."""
    zeros = ((name, *"0" * len(classes)) for name, *_ in rows[1:])
    write_rows(folder / "sample_submission.csv", [(rows[0][0], *classes), *zeros])


def spoil_labels(table: Any, share: float = 0.4, seed: int = 0) -> Any:
    """A clip table in which a share of the rows has as many labels, all wrong; `true_labels` keeps what is true."""
    rng, classes, labels = np.random.default_rng(seed), class_names(table["labels"]), []
    for true in map(split_labels, table["labels"]):
        others = [name for name in classes if name not in true]
        wrong = rng.permutation(others)[: len(true)] if rng.random() < share else true
        labels.append(",".join(sorted(map(str, wrong))))
    return table.assign(labels=labels, true_labels=table["labels"])


def toy_recording(
    singers: Sequence[tuple[str, float]], rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """8 s in which each sings its song once, from its lowest Hz on, over faint noise; when each did. Units: s"""
    wave, spans = rng.normal(0, 0.01, 8 * TOY_RATE), []
    for song, low_hz in singers:
        length = int(TOY_RATE * rng.uniform(0.5, 1.5))
        start = int(rng.integers(0, len(wave) - length))
        event = toy_event(song, length, rng, low_hz, 1.2 * low_hz)
        wave[start : start + length] += event * 10 ** rng.uniform(-1.6, -0.8)
        spans.append((start / TOY_RATE, (start + length) / TOY_RATE))
    return wave, spans


def make_toy_soundscapes(folder: Path, recordings: int = 80, test: int = 40, seed: int = 0) -> None:
    """Write recordings in RFCX's form, each with a true box of one of its 1 to 3 species, and two false ones.

    A false box holds another song in the band of a species that the recording lacks.
    Units: FLAC, 22,050 Hz, 16 bit, mono
    """
    import soundfile

    rng = np.random.default_rng(seed)
    boxes: dict[str, list[tuple[Any, ...]]] = {"train_tp.csv": [BOX_HEADER], "train_fp.csv": [BOX_HEADER]}
    truth: list[tuple[str, ...]] = [("fname", "labels")]
    for part, count in (("train", recordings), ("test", test)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name in (f"{part}_{i:04d}" for i in range(count)):
            order = rng.permutation(len(TOY_SONGS)).tolist()
            present, absent = order[: rng.integers(1, 4)], order[-2:]
            singers = [(TOY_SONGS[one], TOY_LOW_HZ[one]) for one in present]
            singers += [(TOY_SONGS[one - 1], TOY_LOW_HZ[one]) for one in absent]
            wave, spans = toy_recording(singers, rng)
            soundfile.write(folder / part / f"{name}.flac", wave.clip(-1, 1), TOY_RATE, subtype="PCM_16")
            if part == "test":
                truth.append((name, ",".join(f"s{one}" for one in sorted(present))))
                continue
            for one, (begin, end) in zip((present[0], *absent), (spans[0], *spans[-2:]), strict=True):
                low = TOY_LOW_HZ[one]
                rows = boxes["train_tp.csv" if one in present else "train_fp.csv"]
                rows.append((name, one, 1, begin, 0.9 * low, end, 1.3 * low))
    for table, rows in (boxes | {"test_truth.csv": truth}).items():
        write_rows(folder / table, rows)
    write_zeros(folder, [("recording_id",), *truth[1:]], [f"s{one}" for one in range(len(TOY_SONGS))])
