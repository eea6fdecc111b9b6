'''Find near-duplicate recordings by audio fingerprints.

A fingerprint has one *code* of 32 bits per frame. Bit b is 1 if the step in level from band b to band b + 1 grew over
8 frames. Gain, codecs and resampling change levels, but seldom the sign of such a difference of differences. So
copies agree in most bits, and unrelated sounds in about half.

Comparing every pair of clips at every shift would take too long. *Keys*, numbers that copies share, select what is
compared. One wrong bit of 32 spoils a whole code, and half a code has only 65,536 values. So a key joins half of a
frame's code and the same half of the code 8 frames later; each frame has a key for each half.

Each clip is paired only with the next four clips that share a key. Copies then form chains; a group is a whole chain.
'''

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
BLOCK_FRAMES = 128
MIN_COMMON_KEYS = 2
MAX_WRONG_BITS = 0.25


def fingerprint_frontend() -> Frontend:
    '''The front end of fingerprints: 33 bands that even audio at 8 kHz contains, 86 frames a second.'''
    return Frontend(FrontendConfig(sample_rate=11025, hop_length=128, n_mels=33, f_min_hz=300, f_max_hz=3900))


def fingerprint_of_spec(spec: Tensor) -> np.ndarray:
    '''Compute a clip's codes, SILENT for frames that are far below the clip's peak.

    Shape:  spec (33, N) in dB -> (max(0, N - 8),) int64
    Source: Haitsma and Kalker 2002, A Highly Robust Audio Fingerprinting System, there with a lag of 1 frame
    '''
    steps = spec[:-1] - spec[1:]
    bits = steps[:, FINGERPRINT_LAG:] > steps[:, :-FINGERPRINT_LAG]
    codes = (bits.long() << torch.arange(32, device=spec.device)[:, None]).sum(dim=0)
    peaks = spec.amax(dim=0)
    floor = max(FINGERPRINT_FLOOR_DB, float(peaks.max()) - FINGERPRINT_RANGE_DB)
    return np.asarray(codes.where(peaks[FINGERPRINT_LAG:] > floor, SILENT).cpu())


def are_copies(one: np.ndarray, other: np.ndarray, shift: int) -> bool:
    '''Whether two fingerprints agree somewhere for 1.5 s, frame i of one with frame i - shift of the other.

    A quarter of the bits may be wrong, and proportionally fewer where clips overlap by less than 1.5 s: short
    unrelated sounds agree by chance. Copies by low-rate codecs are found from about 1 s on, clean ones from 0.5 s.
    '''
    first = max(0, shift)
    end = min(len(one), len(other) + shift)
    ours = one[first:end]
    theirs = other[first - shift : end - shift]
    wrong_bits = (ours ^ theirs)[(ours != SILENT) & (theirs != SILENT)].astype(np.uint32)
    wrong_shares = np.unpackbits(wrong_bits.view(np.uint8)).reshape(-1, 32).mean(axis=1)
    block = min(BLOCK_FRAMES, len(wrong_shares))
    total = np.cumsum(np.r_[0, wrong_shares])
    best = (total[block:] - total[: len(total) - block]).min()
    return bool(best < MAX_WRONG_BITS * block / BLOCK_FRAMES * block)


def likely_shifts(fingerprints: Sequence[np.ndarray]) -> np.ndarray:
    '''Find clips and shifts with at least two common keys, those with most first.

    Shape:  -> (P, 3) int64: clip, later clip, shift in frames
    '''
    n = len(fingerprints)
    lengths = [len(codes) for codes in fingerprints]
    longest = max(lengths)
    codes = np.concatenate(fingerprints)
    clips = np.repeat(np.arange(n), lengths)
    frames = np.concatenate([np.arange(length) for length in lengths])
    now, later = codes[:-FINGERPRINT_LAG], codes[FINGERPRINT_LAG:]
    same_clip = clips[:-FINGERPRINT_LAG] == clips[FINGERPRINT_LAG:]
    usable = np.flatnonzero((now != SILENT) & (later != SILENT) & same_clip)
    clips = clips[usable]
    frames = frames[usable]

    shape = (n, n, 2 * longest + 1)
    matches = []
    for low_bit in (0, 16):
        keys = (now >> low_bit & 0xFFFF) << 16 | (later >> low_bit & 0xFFFF)
        # Sort by key, then by clip, and keep the first frame of each key in each clip.
        unique, first = np.unique(keys[usable] * n + clips, return_index=True)
        key, clip = np.divmod(unique, n)
        frame = frames[first]
        for step in range(1, KEY_NEIGHBOURS + 1):
            same = np.flatnonzero(key[step:] == key[:-step])
            shift = frame[same] - frame[same + step]
            matches.append(np.ravel_multi_index((clip[same], clip[same + step], shift + longest), shape))

    pairs, counts = np.unique(np.concatenate(matches), return_counts=True)
    likely = pairs[np.argsort(-counts, kind='stable')][: (counts >= MIN_COMMON_KEYS).sum()]
    clip, later_clip, shift = np.unravel_index(likely, shape)
    return np.stack([clip, later_clip, shift - longest], axis=1)


def near_duplicates(fingerprints: Sequence[np.ndarray]) -> list[str]:
    '''A group name for each clip, equal for clips that copies link, else empty.'''
    if not fingerprints:
        return []
    groups = np.arange(len(fingerprints))
    for one, other, shift in likely_shifts(fingerprints).tolist():
        low, high = sorted((groups[one], groups[other]))
        if low != high and are_copies(fingerprints[one], fingerprints[other], shift):
            groups[groups == high] = low
    sizes = np.bincount(groups)
    return [f'copies of {group}' if sizes[group] > 1 else '' for group in groups]
