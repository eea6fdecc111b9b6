"""Find near-duplicate recordings by fingerprints."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kit.audio.frontend import Frontend, FrontendConfig

FINGERPRINT_LAG = 8
FINGERPRINT_RANGE_DB = 50.0
FINGERPRINT_FLOOR_DB = -90.0
SILENT = -1
KEY_NEIGHBOURS = 4
LEAST_HITS = 2
BLOCK_FRAMES = 128
MOST_WRONG_BITS = 0.25


def fingerprint_frontend() -> Frontend:
    """33 bands that even audio at 8 kHz holds, 86 frames a second."""
    return Frontend(
        FrontendConfig(
            sample_rate=11025, n_fft=2048, hop_length=128, n_mels=33, f_min_hz=300.0, f_max_hz=3900.0
        )
    )


def fingerprint_of_spec(spec: Tensor) -> np.ndarray:
    """32 bits a frame: whether the step to the next band grew within 8 frames; SILENT far below the peak.

    Shape:  spec (33, N) in dB -> (max(0, N - 8),) int64
    Source: Haitsma & Kalker 2002, A Highly Robust Audio Fingerprinting System, with a longer lag
    """
    steps, level = spec[:-1] - spec[1:], spec.amax(dim=0)
    bits = steps[:, FINGERPRINT_LAG:] > steps[:, :-FINGERPRINT_LAG]
    codes = (bits.long() << torch.arange(32, device=spec.device)[:, None]).sum(dim=0)
    least = max(FINGERPRINT_FLOOR_DB, float(level.max()) - FINGERPRINT_RANGE_DB)
    return np.asarray(codes.where(level[FINGERPRINT_LAG:] > least, SILENT).cpu())


def are_copies(one: np.ndarray, other: np.ndarray, shift: int) -> bool:
    """Whether two clips agree for 1.5 s, frame i on i - shift; where they share less, more so.

    A quarter of the bits may differ, of fewer frames in proportion fewer: copies through low-rate codecs are found
    from some 1 s on, clean ones from 0.5 s.
    """
    first, last = max(0, shift), min(len(one), len(other) + shift)
    a, b = one[first:last], other[first - shift : last - shift]
    differing = (a ^ b)[(a != SILENT) & (b != SILENT)].astype(np.uint32)
    wrong = np.cumsum(np.r_[0, np.unpackbits(differing.view(np.uint8)).reshape(-1, 32).mean(axis=1)])
    block = min(BLOCK_FRAMES, len(differing))
    least = (wrong[block:] - wrong[: len(wrong) - block]).min()
    return bool(least < MOST_WRONG_BITS * block**2 / BLOCK_FRAMES)


def likely_shifts(fingerprints: Sequence[np.ndarray]) -> np.ndarray:
    """Pairs of clips with keys in common at one shift, those with most first.

    A key is half of a frame's bits and of those 8 frames on. A clip's first frame of it meets the next few clips'
    only: a common key costs no more than a rare one, and many copies still make a chain.
    Shape:  -> (P, 3) int64: clip, later clip, shift in frames
    """
    n, lengths = len(fingerprints), [len(codes) for codes in fingerprints]
    clips, codes = np.repeat(np.arange(n), lengths), np.concatenate(fingerprints)
    frames = np.concatenate([np.arange(length) for length in lengths])
    here, there = codes[:-FINGERPRINT_LAG], codes[FINGERPRINT_LAG:]
    whole = (here != SILENT) & (there != SILENT) & (clips[:-FINGERPRINT_LAG] == clips[FINGERPRINT_LAG:])
    heard, sizes, found = np.flatnonzero(whole), (n, n, 2 * max(lengths) + 1), []
    for half in (0, 16):
        keys = (here >> half & 0xFFFF) << 16 | there >> half & 0xFFFF
        marks, first = np.unique(keys[heard] * n + clips[heard], return_index=True)
        (keys, clip), frame = np.divmod(marks, n), frames[heard][first]
        for step in range(1, KEY_NEIGHBOURS + 1):
            hit = np.flatnonzero(keys[step:] == keys[:-step])
            shift = frame[hit] - frame[hit + step] + max(lengths)
            found.append(np.ravel_multi_index((clip[hit], clip[hit + step], shift), sizes))
    likely, hits = np.unique(np.concatenate(found), return_counts=True)
    likely = likely[np.argsort(-hits, kind="stable")][: (hits >= LEAST_HITS).sum()]
    return np.stack(np.unravel_index(likely, sizes), axis=1) - [0, 0, max(lengths)]


def near_duplicates(fingerprints: Sequence[np.ndarray]) -> list[str]:
    """A text per clip, alike for clips that copies link; empty for one without.

    Time and memory grow with the seconds of sound, hardly with the pairs of clips.
    """
    home = np.arange(len(fingerprints))
    for one, other, shift in likely_shifts(fingerprints).tolist() if len(fingerprints) else ():
        low, high = sorted((home[one], home[other]))
        if low != high and are_copies(fingerprints[one], fingerprints[other], shift):
            home[home == high] = low
    sizes = np.bincount(home)
    return [f"copies of {low}" if sizes[low] > 1 else "" for low in home]
