"""Augmentation of waveforms."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.audio.mixup import check_ranges, probability_of, within_range
from kit.audio.resample import resampler
from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.core.runtime import full_float32

RATE_STEPS = 60
VOCODER_S = 0.046
LOWEST_NOISE_HZ = 20.0
LEAST_POWER = 1e-20


@dataclass(frozen=True)
class WaveAugmentConfig(Config):
    """What happens to a waveform, in this order; nothing is clipped to [-1, 1]."""

    shift_p: float = probability_of("moving in time")
    shift_share: float = setting(0.5, "greatest move, of the clip", low=0, high=1)
    shift_silence: bool = setting(False, "silence comes in, not what went out")
    speed_p: float = probability_of("another speed, pitch and all")
    speed: float = setting(1.1, "its greatest factor", low=1, high=2)
    pitch_p: float = probability_of("another pitch at the same pace")
    pitch_cents: float = setting(300.0, "its greatest shift", low=0, high=1200)
    tempo_p: float = probability_of("another pace at the same pitch")
    tempo: float = setting(1.1, "its greatest factor", low=1, high=2)
    overdrive_p: float = probability_of("soft clipping, the power kept")
    overdrive_db: tuple[float, ...] = setting((5.0, 25.0), "the peak above the knee")
    reverb_p: float = probability_of("a room")
    reverb_s: tuple[float, ...] = setting((0.1, 0.8), "its decay by 60 dB", low=0.01, high=10)
    reverb_db: float = setting(0.0, "its energy per second of decay, against the direct sound's")
    background_p: float = probability_of("a background clip")
    background_snr_db: tuple[float, ...] = setting((5.0, 30.0), "power above it")
    noise_p: float = probability_of("noise")
    noise_snr_db: tuple[float, ...] = setting((5.0, 30.0), "power above it")
    noise_colours: tuple[float, ...] = setting((0.0, -1.0, -2.0), "white, pink, brown", low=-4, high=4)
    gain_p: float = probability_of("another level")
    gain_db: tuple[float, ...] = setting((-6.0, 6.0), "gain")

    def check(self) -> None:
        check_ranges(**self.ranges(1))
        if not self.noise_colours:
            raise KitError("noise_colours is empty: give exponents, 0 for white noise.")

    def ranges(self, samples: int) -> dict[str, tuple[float, ...]]:
        """From where to where each amount is drawn."""
        roll, pitch = self.shift_share * samples, 2 ** (self.pitch_cents / 1200)
        return {
            "shift": (-roll, roll), "speed": (1 / self.speed, self.speed), "pitch": (1 / pitch, pitch),
            "tempo": (1 / self.tempo, self.tempo), "overdrive": self.overdrive_db, "reverb": self.reverb_s,
            "background": self.background_snr_db, "noise": self.noise_snr_db, "gain": self.gain_db,
        }  # fmt: skip


@dataclass(frozen=True)
class WaveDraw:
    """How much of each change a clip gets, NaN for none, and its seed for noise, room and background.

    Units:  (B,) each: roll in samples; speed, pitch and tempo as factors; reverb in s; the others in dB
    """

    amounts: dict[str, Tensor]
    seeds: Tensor


def draw_wave_augment(
    config: WaveAugmentConfig, clips: int, samples: int, generator: torch.Generator, chance: Tensor | float = 1.0
) -> WaveDraw:  # fmt: skip
    """Draw everything, so that one chance changes nothing else that is drawn. Shape: chance (B,) times each p"""
    amounts = {}
    for name, ends in config.ranges(samples).items():
        coins, places = torch.rand(2, clips, generator=generator, dtype=torch.float64)
        amount = within_range(ends, places)
        if name in ("shift", "speed", "pitch", "tempo"):
            # Few small factors, so that clips share a filter and none is large.
            unit = 1 if name == "shift" else RATE_STEPS
            least, most = math.ceil(ends[0] * unit - 1e-9), math.floor(ends[1] * unit + 1e-9)
            amount = within_range((least, most + 1), places).floor() / unit
        amounts[name] = amount.where(coins < getattr(config, f"{name}_p") * chance, torch.nan)
    return WaveDraw(amounts, torch.randint(1 << 31, (clips,), generator=generator))


class WaveBatch(NamedTuple):
    """The clips of one change. Shape: waves (b, T), amount and seeds (b,), backgrounds (n, T')"""

    waves: Tensor
    amount: Tensor
    seeds: Tensor
    config: WaveAugmentConfig
    sample_rate: int
    backgrounds: Tensor | None

    @property
    def gain(self) -> Tensor:
        """The amount in dB as a factor. Shape: (b, 1)"""
        return torch.pow(10.0, self.amount / 20).to(self.waves)[:, None]

    def noise(self, samples: int) -> Tensor:
        """White noise from each clip's seed, other on other devices. Shape: -> (b, samples)"""
        device = self.waves.device
        seeded = (torch.Generator(device).manual_seed(seed) for seed in self.seeds.tolist())
        return torch.stack([torch.randn(samples, generator=own, device=device) for own in seeded])


def match_power(sounds: Tensor, waves: Tensor) -> Tensor:
    """Sounds at the power of waves. Shape: (b, T), (b, T') -> (b, T)"""
    power, wanted = (x.square().mean(-1, keepdim=True).clamp_min(LEAST_POWER) for x in (sounds, waves))
    return sounds * (wanted / power).sqrt()


def time_shift(task: WaveBatch) -> Tensor:
    """Clips moved in time, each by its own number of samples."""
    samples = task.waves.shape[-1]
    places = (torch.arange(samples) - task.amount.long()[:, None]).to(task.waves.device)
    outside = (places < 0) | (places >= samples)
    return task.waves.gather(1, places % samples).masked_fill(outside & task.config.shift_silence, 0)


def change_rate(task: WaveBatch, change: str) -> Tensor:
    """Clips at another speed, tempo or, by both, pitch, cut or looped to the old length."""
    waves, steps = task.waves.clone(), (task.amount * RATE_STEPS).round().long()
    for step in {*steps.tolist()} - {RATE_STEPS}:
        heard = waves[steps == step]
        if change != "tempo":
            with full_float32():
                heard = resampler(step, RATE_STEPS, str(waves.device))(heard)
        if change != "speed":
            n_fft = 1 << max(4, round(math.log2(VOCODER_S * task.sample_rate)))
            heard = phase_vocoder(heard, step / RATE_STEPS if change == "tempo" else RATE_STEPS / step, n_fft)
        waves[steps == step] = heard[:, torch.arange(waves.shape[-1]) % heard.shape[-1]]
    return waves


def phase_vocoder(waves: Tensor, rate: float, n_fft: int) -> Tensor:
    """Sounds at another pace by a phase vocoder: pitch and power stay. Shape: (b, T) -> (b, about T / rate)

    Each frame turns on by the angle between its two neighbours in the source, as a product of unit numbers.
    Source: Flanagan and Golden 1966; Dolson 1986
    """
    length, window = round(waves.shape[-1] / rate), torch.hann_window(n_fft).to(waves)
    padded = F.pad(waves, (0, max(0, n_fft - waves.shape[-1])))
    spec = torch.stft(padded, n_fft, window=window, return_complex=True).mT
    place = torch.arange(4 * length // n_fft + 2, device=waves.device) * rate
    first = place.long().clamp(max=spec.shape[1] - 2)
    left, right = spec[:, first], spec[:, first + 1]
    turns = torch.cat([spec[:, :1], right * left.conj()], dim=1)[:, :-1].sgn()
    turns = turns.where(turns != 0, 1.0).cumprod(1)
    spec = left.abs().lerp(right.abs(), (place - first).clamp(max=1).to(waves)[:, None]) * turns
    return match_power(torch.istft(spec.mT, n_fft, window=window, length=max(1, length)), waves)


def overdrive(task: WaveBatch) -> Tensor:
    """Soft clipping."""
    peak = task.waves.abs().amax(-1, keepdim=True).clamp_min(LEAST_POWER)
    return match_power(torch.tanh(task.waves / peak * task.gain), task.waves)


def reverb(task: WaveBatch) -> Tensor:
    """The direct sound, and noise that decays."""
    samples, decay_s = task.waves.shape[-1], task.amount.to(task.waves)[:, None]
    length = min(samples, round(task.config.reverb_s[1] * task.sample_rate))
    time_s = torch.arange(length).to(decay_s) / task.sample_rate
    tail = F.normalize(task.noise(length) * torch.pow(1000, -time_s / decay_s))
    tail = tail * (decay_s * 10 ** (task.config.reverb_db / 10)).sqrt()
    n = 1 << (samples + length).bit_length()
    heard: Tensor = torch.fft.irfft(torch.fft.rfft(task.waves, n) * torch.fft.rfft(tail, n), n)
    return task.waves + heard[:, :samples]


def mix_at_snr(task: WaveBatch, other: Tensor) -> Tensor:
    """Another sound added, the drawn dB below each clip, none to silence. Shape: other (b, T) -> (b, T)"""
    return task.waves + match_power(other, task.waves) / task.gain * task.waves.any(-1, keepdim=True)


def add_noise(task: WaveBatch) -> Tensor:
    """Noise of a drawn colour, from 20 Hz up."""
    colours, samples = torch.tensor(task.config.noise_colours), task.waves.shape[-1]
    n = 1 << samples.bit_length()
    hz = torch.fft.rfftfreq(n, 1 / task.sample_rate, device=task.waves.device)
    slope = colours[task.seeds % len(colours)].to(hz)[:, None]
    tilt = hz.clamp_min(LOWEST_NOISE_HZ).pow(slope / 2) * (hz >= LOWEST_NOISE_HZ)
    return mix_at_snr(task, torch.fft.irfft(torch.fft.rfft(task.noise(n)) * tilt)[:, :samples])


def add_background(task: WaveBatch) -> Tensor:
    """A background clip, from a drawn place on, repeated as need be."""
    if task.backgrounds is None or not task.backgrounds.numel():
        raise KitError("background_p wants backgrounds: give some, or use 0.")
    clips, samples = task.backgrounds.shape
    places = torch.arange(task.waves.shape[-1]) + task.seeds[:, None] // clips
    return mix_at_snr(task, task.backgrounds[task.seeds[:, None] % clips, places % samples].to(task.waves))


WAVE_AUGMENTS: dict[str, Callable[[WaveBatch], Tensor]] = {
    "shift": time_shift,
    **{name: partial(change_rate, change=name) for name in ("speed", "pitch", "tempo")},
    "overdrive": overdrive,
    "reverb": reverb,
    "background": add_background,
    "noise": add_noise,
    "gain": lambda task: task.waves * task.gain,
}


def augment_waves(
    waves: Tensor, draw: WaveDraw, config: WaveAugmentConfig, sample_rate: int, backgrounds: Tensor | None = None
) -> Tensor:  # fmt: skip
    """The clips as drawn, those without a change bit for bit as they were; silence stays silence.

    Shape:  waves (B, T) float32 -> the same, backgrounds (n, T')
    Errors: KitError for another number of clips than drawn, or no backgrounds
    """
    if len(waves) != len(draw.seeds):
        raise KitError(f"{len(waves)} waves for a draw of {len(draw.seeds)} clips: draw for as many.")
    for name, change in WAVE_AUGMENTS.items():
        amount = draw.amounts[name]
        if len(rows := (~amount.isnan()).nonzero()[:, 0]):
            task = WaveBatch(waves[rows], amount[rows], draw.seeds[rows], config, sample_rate, backgrounds)
            waves = waves.index_copy(0, rows.to(waves.device), change(task))
    return waves
