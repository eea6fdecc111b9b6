'''Cut clips into windows, round lengths to buckets, pad, batch, and pool scores over windows.'''

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kit.core.config import Config, setting
from kit.core.errors import KitError

PAD_MODES = ('wrap', 'reflect', 'min')
WINDOW_POOLS = ('max', 'mean', 'top_k', 'power', 'geometric', 'snr', 'snr_top')

# The least score to divide by or to take the logarithm of.
MIN_SCORE = 1e-30

# First frame of a window, and the frame after its last.
Span = tuple[int, int]


def bucket_length(frames: int, shortest: int, ratio: float) -> int:
    '''Round a length up to a bucket's: the first is `shortest`, each other at most `ratio` times the one before.

    A clip's bucket, and so its prediction, depends on the clip alone. Units: frames
    '''
    length = shortest
    while length < frames:
        # Rounding down keeps the step within the ratio; short lengths still grow by one frame.
        length = max(length + 1, int(length * ratio))
    return length


def reflect_index(index: Tensor, length: int) -> Tensor:
    '''Map any positions to 0..length - 1, as numpy.pad's mode "reflect".'''
    period = max(1, 2 * length - 2)
    index = index % period
    return torch.minimum(index, period - index)


def pad_frames(spec: Tensor, frames: int, mode: str, floor: Tensor | None = None) -> Tensor:
    '''Lengthen a spectrogram: "wrap" repeats it, "reflect" mirrors it, "min" appends `floor` or its minimum.

    Shape:  spec (..., N), floor (..., 1) -> (..., frames), 1 <= N <= frames
    '''
    n_frames = spec.shape[-1]
    if n_frames == frames:
        return spec
    if mode == 'min':
        value = spec.amin() if floor is None else floor
        return torch.cat([spec, value.expand(*spec.shape[:-1], frames - n_frames)], dim=-1)
    index = torch.arange(frames, device=spec.device)
    index = index % n_frames if mode == 'wrap' else reflect_index(index, n_frames)
    return spec[..., index]


def batches_by_length(lengths: Sequence[int], batch_frames: int, batch_clips: int = 64) -> list[list[int]]:
    '''Group clips into batches of one length, shortest first, each within both limits or of one clip.'''
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        limit = min(batch_clips, max(1, batch_frames // length))
        if batches and lengths[batches[-1][0]] == length and len(batches[-1]) < limit:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def window_spans(frames: int, length: int, hop: float) -> list[Span]:
    '''The windows that cover every frame of a clip: one each `hop`, the last aligned to the end.

    A clip shorter than one window gets the one span (0, length); the caller pads it.
    Units:  frames; `hop` may be a fraction, up to `length`
    '''
    last = max(0, frames - length)
    # Adding rounded hops would drift. A hop below a frame gives equal starts, which the set removes.
    starts = {min(round(k * hop), last) for k in range(math.ceil(last / hop) + 1)}
    return [(start, start + length) for start in sorted(starts)]


@dataclass(frozen=True)
class InferenceConfig(Config):
    '''How a tagger predicts a clip: whole or in windows, its padding and its pooling. Checkpoints store it.'''

    mode: str = setting(
        'full',
        'full: read whole clips; windows: read windows of window_s; frames: read whole clips, predict windows',
        choices=('full', 'windows', 'frames'),
    )
    window_s: float = setting(5.0, 'modes windows, frames: seconds per window', low=0.01, high=86400)
    hop_s: float = setting(2.5, 'modes windows, frames: seconds between windows, up to window_s', low=0.001, high=86400)
    pool: str = setting('max', 'how the scores of several windows or pieces become one per class', choices=WINDOW_POOLS)
    pool_k: int = setting(
        3,
        'pool top_k averages so many windows per class, pools snr and snr_top compare so many classes with all',
        low=1,
        high=1_000_000,
    )
    pool_power: float = setting(2.0, 'exponent of pool power', low=1e-3, high=1e3)
    pad_mode: str = setting(
        'wrap', 'padding: wrap repeats, reflect mirrors, min appends the minimum', choices=PAD_MODES
    )
    bucket_ratio: float = setting(1.05, 'modes full, frames: ratio of the lengths to pad clips to', low=1, high=1.25)
    max_frames: int = setting(
        8192, 'modes full, frames: longer clips are cut into pieces that overlap by half', low=64, high=100_000_000
    )

    def check(self) -> None:
        if self.hop_s > self.window_s:
            raise KitError(f'hop_s must be in (0, {self.window_s:g}], got {self.hop_s:g}: a longer hop skips audio.')

    def spans(self, frames: int, frames_per_s: float) -> list[Span]:
        '''Return the parts of a clip that get logits: windows, or pieces of up to max_frames. Units: frames'''
        if self.mode != 'full':
            # Without 1e-6, an error of the last digit would add a frame to a whole number.
            length = math.ceil(self.window_s * frames_per_s - 1e-6)
            return window_spans(frames, length, max(1.0, min(length, self.hop_s * frames_per_s)))
        if frames <= self.max_frames:
            return [(0, frames)]
        return window_spans(frames, self.max_frames, self.max_frames // 2)

    def inputs(self, frames: int, frames_per_s: float) -> list[tuple[Span, list[Span]]]:
        '''Return the parts of a clip that the network reads, each with the spans whose logits it computes.

        In mode frames these are the windows with the nearest centres. Units: frames
        '''
        spans = self.spans(frames, frames_per_s)
        if self.mode != 'frames':
            return [(span, [span]) for span in spans]
        length = spans[0][1]
        if max(frames, length) <= self.max_frames:
            return [((0, max(frames, length)), spans)]
        if length > self.max_frames:
            needed = f"max_frames of a window's {length} frames or more"
            raise KitError(f'mode frames needs {needed}, got {self.max_frames}: raise max_frames.')
        # With this hop, each window is wholly inside the piece whose centre is nearest.
        hop = max(1, min(self.max_frames // 2, self.max_frames - length))
        windows_of: dict[Span, list[Span]] = {piece: [] for piece in window_spans(frames, self.max_frames, hop)}
        for span in spans:
            nearest = min(windows_of, key=lambda piece: abs(sum(piece) - sum(span)))
            windows_of[nearest].append(span)
        return [(piece, windows) for piece, windows in windows_of.items() if windows]

    def input_frames(self, span: Span, shortest: int) -> int:
        '''Return the length a span is padded to; `shortest` is the fewest frames that the network accepts.'''
        frames = span[1] - span[0]
        if self.mode == 'windows' or frames >= self.max_frames:
            return max(frames, shortest)
        return bucket_length(frames, shortest, self.bucket_ratio)


def pool_windows(scores: Tensor, inference: InferenceConfig) -> Tensor:
    '''Pool the scores of a clip's windows. Shape: scores (W, K) in [0, 1] -> (K,)'''
    pool = inference.pool
    if pool == 'max':
        return scores.amax(dim=0)
    if pool == 'mean':
        return scores.mean(dim=0)
    if pool == 'top_k':
        k = min(inference.pool_k, len(scores))
        return scores.topk(k, dim=0).values.mean(dim=0)
    if pool == 'power':
        # The mean at power 1, the maximum at infinity. Relative to the peak, scores neither under- nor overflow.
        power = inference.pool_power
        peak = scores.amax(dim=0).clamp_min(MIN_SCORE)
        return peak * (scores / peak).pow(power).mean(dim=0).pow(1.0 / power)
    if pool == 'geometric':
        return scores.clamp_min(MIN_SCORE).log().mean(dim=0).exp()
    # "snr": a window with few clear classes counts more than one with many weak ones. Its weight is the share of its
    # k highest scores in their sum (Freesound Audio Tagging 2019, averaging by signal-to-noise ratio).
    k = min(inference.pool_k, scores.shape[1])
    weights = scores.topk(k).values.sum(1) / scores.sum(1).clamp_min(MIN_SCORE)
    if pool == 'snr_top':
        # The mean of the quarter of windows with the highest ratios, as the source labels whole clips.
        best = weights.argsort(descending=True, stable=True)[: math.ceil(len(scores) / 4)]
        return scores[best].mean(dim=0)
    return (scores * weights[:, None]).sum(dim=0) / weights.sum().clamp_min(MIN_SCORE)
