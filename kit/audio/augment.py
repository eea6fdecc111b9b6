'''Augment waveforms. Each effect is one function of `WAVE_AUGMENTS`; what it does to each clip is drawn first.'''

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.audio.mixup import check_ranges, probability_of, scale_to_range
from kit.audio.waveform import resampler
from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.core.runtime import full_float32

# Rates are multiples of 1 / RATE_STEPS: a batch's clips share them, and resampling by them needs small filters.
RATE_STEPS = 60
VOCODER_S = 0.046
LOWEST_NOISE_HZ = 20.0
LEAST_POWER = 1e-20


@dataclass(frozen=True)
class WaveAugmentConfig(Config):
    '''How waveforms are augmented, in this order. Nothing is clipped to [-1, 1].'''

    chance: float = setting(1.0, 'chance that a crop is augmented at all', low=0, high=1)
    shift_p: float = probability_of('a shift in time')
    shift_share: float = setting(0.5, 'largest shift, as a share of the clip', low=0, high=1)
    speed_p: float = probability_of('another speed, which changes pitch and tempo together')
    speed: float = setting(1.1, 'largest factor; the smallest is its inverse', low=1, high=2)
    pitch_p: float = probability_of('another pitch at the same tempo')
    pitch_cents: float = setting(300.0, 'largest shift up or down, cents', low=0, high=1200)
    tempo_p: float = probability_of('another tempo at the same pitch')
    tempo: float = setting(1.1, 'largest factor; the smallest is its inverse', low=1, high=2)
    overdrive_p: float = probability_of('overdrive: soft clipping at the same power')
    overdrive_db: tuple[float, ...] = setting((5.0, 25.0), 'range of the peak above the knee, dB', low=-200, high=200)
    reverb_p: float = probability_of('reverberation')
    reverb_s: tuple[float, ...] = setting((0.1, 0.8), 'range of its decay time (60 dB), s', low=0.01, high=10)
    background_p: float = probability_of('a background clip mixed in')
    background_snr_db: tuple[float, ...] = setting(
        (5.0, 30.0), 'range of the signal-to-noise ratio, dB', low=-200, high=200
    )
    noise_p: float = probability_of('noise mixed in')
    noise_snr_db: tuple[float, ...] = setting((5.0, 30.0), 'range of the signal-to-noise ratio, dB', low=-200, high=200)
    noise_colours: tuple[float, ...] = setting(
        (0.0, -1.0, -2.0), 'exponents of Hz in its power: 0 white, -1 pink, -2 brown', low=-4, high=4
    )
    gain_p: float = probability_of('a gain')
    gain_db: tuple[float, ...] = setting((-6.0, 6.0), 'range of the gain, dB', low=-200, high=200)

    def check(self) -> None:
        check_ranges(self, 'overdrive_db', 'reverb_s', 'background_snr_db', 'noise_snr_db', 'gain_db')
        if not self.noise_colours:
            raise KitError('noise_colours is empty: name at least one exponent, as 0 for white noise.')

    def amount_ranges(self, samples: int) -> dict[str, tuple[float, ...]]:
        '''The range of each effect's amount. Units: see `WaveDraw`'''
        shift = self.shift_share * samples
        pitch = 2 ** (self.pitch_cents / 1200)
        return {
            'shift': (-shift, shift),
            'speed': (1 / self.speed, self.speed),
            'pitch': (1 / pitch, pitch),
            'tempo': (1 / self.tempo, self.tempo),
            'overdrive': self.overdrive_db,
            'reverb': self.reverb_s,
            'background': self.background_snr_db,
            'noise': self.noise_snr_db,
            'gain': self.gain_db,
        }


@dataclass(frozen=True)
class WaveDraw:
    '''Each effect's amount, NaN where it is off, and each clip's seed, which decides noise, reverb and background.

    Shape:  (B,) each
    Units:  shift in samples; speed, pitch and tempo are factors; reverb in seconds; all others in dB
    '''

    amounts: dict[str, Tensor]
    seeds: Tensor


def draw_wave_augment(
    config: WaveAugmentConfig, clips: int, samples: int, generator: torch.Generator, chance: Tensor | float = 1.0
) -> WaveDraw:
    '''Draw what happens to each clip. Shape: chance (B,) multiplies every probability of each clip'''
    amounts = {}
    if config.chance < 1:
        chance = chance * (torch.rand(clips, generator=generator) < config.chance)
    # All numbers are drawn, also for effects that are off: changing one probability changes no other draw.
    for name, (low, high) in config.amount_ranges(samples).items():
        for_event, for_amount = torch.rand(2, clips, generator=generator, dtype=torch.float64)
        if name in ('shift', 'speed', 'pitch', 'tempo'):
            # Whole samples, or whole steps of the rate, inside the range.
            steps = 1 if name == 'shift' else RATE_STEPS
            ends = (math.ceil(low * steps - 1e-9), math.floor(high * steps + 1e-9) + 1)
            amount = scale_to_range(for_amount, ends).floor() / steps
        else:
            amount = scale_to_range(for_amount, (low, high))
        amounts[name] = amount.where(for_event < getattr(config, f'{name}_p') * chance, torch.nan)
    return WaveDraw(amounts, torch.randint(1 << 31, (clips,), generator=generator))


@dataclass(frozen=True)
class WaveBatch:
    '''The clips of one effect. Shape: waves (b, T); amount and seeds (b,); backgrounds (n, T')'''

    waves: Tensor
    amount: Tensor
    seeds: Tensor
    config: WaveAugmentConfig
    sample_rate: int
    backgrounds: Tensor | None

    @property
    def gain(self) -> Tensor:
        '''The amount in dB as a factor. Shape: (b, 1)'''
        return torch.pow(10.0, self.amount / 20).to(self.waves)[:, None]

    def white_noise(self, samples: int) -> Tensor:
        '''Draw white noise from each clip's seed. Each kind of device draws its own. Shape: (b, samples)'''
        device = self.waves.device
        generators = [torch.Generator(device).manual_seed(seed) for seed in self.seeds.tolist()]
        return torch.stack([torch.randn(samples, generator=g, device=device) for g in generators])


def match_power(sounds: Tensor, waves: Tensor) -> Tensor:
    '''Scale each sound to the power of a waveform.'''
    target, power = (x.square().mean(-1, keepdim=True).clamp_min(LEAST_POWER) for x in (waves, sounds))
    return sounds * (target / power).sqrt()


def time_shift(batch: WaveBatch) -> Tensor:
    '''Shift each clip in a circle by its own number of samples, later for a positive one.'''
    samples = batch.waves.shape[-1]
    source = (torch.arange(samples) - batch.amount.long()[:, None]) % samples
    return batch.waves.gather(1, source.to(batch.waves.device))


def change_rate(batch: WaveBatch, resample: bool, vocode: bool) -> Tensor:
    '''Change speed (resample), tempo (vocode) or pitch (both); cut or repeat the result to the old length.'''
    n_fft = 1 << max(4, round(math.log2(VOCODER_S * batch.sample_rate)))
    waves = batch.waves.clone()
    samples = torch.arange(waves.shape[-1])
    steps = (batch.amount * RATE_STEPS).round().long()
    for step in set(steps.tolist()) - {RATE_STEPS}:
        changed = waves[steps == step]
        if resample:
            with full_float32():
                changed = resampler(step, RATE_STEPS, str(waves.device))(changed)
        if vocode:
            changed = change_tempo(changed, RATE_STEPS / step if resample else step / RATE_STEPS, n_fft)
        waves[steps == step] = changed[:, samples % changed.shape[-1]]
    return waves


def change_tempo(waves: Tensor, rate: float, n_fft: int) -> Tensor:
    '''Play sounds `rate` times as fast at equal pitch and power.'''
    from torchaudio.functional import phase_vocoder

    length = max(1, round(waves.shape[-1] / rate))
    hop = n_fft // 4
    window = torch.hann_window(n_fft).to(waves)
    padded = F.pad(waves, (0, max(0, n_fft - waves.shape[-1])))
    spec = torch.stft(padded, n_fft, window=window, return_complex=True)
    advance = torch.linspace(0, math.pi * hop, spec.shape[1], device=waves.device)[:, None]
    return match_power(torch.istft(phase_vocoder(spec, rate, advance), n_fft, window=window, length=length), waves)


def overdrive(batch: WaveBatch) -> Tensor:
    '''Clip softly: tanh of the wave, its peak the drawn dB above 1.'''
    # torchaudio's overdrive goes sample by sample, and its knee ignores the clip's level.
    peak = batch.waves.abs().amax(-1, keepdim=True).clamp_min(LEAST_POWER)
    return match_power(torch.tanh(batch.waves / peak * batch.gain), batch.waves)


def reverb(batch: WaveBatch) -> Tensor:
    '''Add the convolution with noise that decays by 60 dB in the drawn seconds.

    Source: Polack 1988, the statistical model of late reverberation
    '''
    samples = batch.waves.shape[-1]
    decay_s = batch.amount.to(batch.waves)[:, None]
    length = min(samples, round(batch.config.reverb_s[1] * batch.sample_rate))
    time_s = torch.arange(length).to(decay_s) / batch.sample_rate
    # An amplitude of 1/1000 is -60 dB. A decay of one second has the energy of the direct sound.
    response = F.normalize(batch.white_noise(length) * torch.pow(1000, -time_s / decay_s)) * decay_s.sqrt()
    # torchaudio's fftconvolve pads to no power of two: 3 to 6 times as slow.
    n = 1 << (samples + length).bit_length()
    wet = torch.fft.irfft(torch.fft.rfft(batch.waves, n) * torch.fft.rfft(response, n), n)
    return batch.waves + wet[:, :samples]


def mix_at_snr(batch: WaveBatch, other: Tensor) -> Tensor:
    '''Add another sound, the drawn dB below each clip. Silence on either side adds nothing. Shape: other (b, T)'''
    from torchaudio.functional import add_noise

    has_power = (batch.waves.square().sum(-1) > 0) & (other.square().sum(-1) > 0)
    return add_noise(batch.waves, other, batch.amount.to(batch.waves)).where(has_power[:, None], batch.waves)


def add_background(batch: WaveBatch) -> Tensor:
    '''Mix in a background clip, looped, from a drawn place on.'''
    assert batch.backgrounds is not None, 'load_backgrounds refuses background_p without any'
    clips, samples = batch.backgrounds.shape
    seeds = batch.seeds[:, None]
    clip = seeds % clips
    place = (seeds // clips + torch.arange(batch.waves.shape[-1])) % samples
    return mix_at_snr(batch, batch.backgrounds[clip, place].to(batch.waves))


def add_coloured_noise(batch: WaveBatch) -> Tensor:
    '''Mix in noise of a drawn colour, from 20 Hz up. Source: Timmer and Koenig 1995'''
    samples = batch.waves.shape[-1]
    n = 1 << samples.bit_length()
    hz = torch.fft.rfftfreq(n, 1 / batch.sample_rate, device=batch.waves.device)
    colours = torch.tensor(batch.config.noise_colours)
    exponent = colours[batch.seeds % len(colours)].to(hz)[:, None]
    # The exponent is of power; amplitudes get half of it.
    tilt = hz.clamp_min(LOWEST_NOISE_HZ).pow(exponent / 2) * (hz >= LOWEST_NOISE_HZ)
    return mix_at_snr(batch, torch.fft.irfft(torch.fft.rfft(batch.white_noise(n)) * tilt)[:, :samples])


WAVE_AUGMENTS: dict[str, Callable[[WaveBatch], Tensor]] = {
    'shift': time_shift,
    'speed': lambda batch: change_rate(batch, resample=True, vocode=False),
    'pitch': lambda batch: change_rate(batch, resample=True, vocode=True),
    'tempo': lambda batch: change_rate(batch, resample=False, vocode=True),
    'overdrive': overdrive,
    'reverb': reverb,
    'background': add_background,
    'noise': add_coloured_noise,
    'gain': lambda batch: batch.waves * batch.gain,
}


def augment_waves(
    waves: Tensor, draw: WaveDraw, config: WaveAugmentConfig, sample_rate: int, backgrounds: Tensor | None = None
) -> Tensor:
    '''Augment clips as drawn. Clips without any effect stay bit for bit, and silence stays silence.

    Shape:  waves (B, T) float32 -> the same; backgrounds (n, T')
    '''
    for name, effect in WAVE_AUGMENTS.items():
        amount = draw.amounts[name]
        rows = (~amount.isnan()).nonzero()[:, 0]
        if len(rows):
            batch = WaveBatch(waves[rows], amount[rows], draw.seeds[rows], config, sample_rate, backgrounds)
            waves = waves.index_copy(0, rows.to(waves.device), effect(batch))
    return waves
