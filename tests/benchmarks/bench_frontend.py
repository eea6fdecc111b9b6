"""Milliseconds per clip of the frontend beside librosa and torchaudio, interleaved in one process.

Run: python -m tests.benchmarks.bench_frontend
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from kit.audio.frontend import Frontend, FrontendConfig

RATE = 44100
SECONDS = 5
BATCH = 64


def timed_ms(work: Callable[[], object]) -> float:
    """Wall-clock milliseconds of one call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def interleaved_ms(works: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, np.ndarray]:
    """Milliseconds of every call, works taking turns in blocks so that noise hits all alike.

    The first calls of a block are not counted: other libraries' threads still spin, and caches are cold.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name] += [timed_ms(work) for _ in range(calls + calls // 2)][calls // 2 :]
    return {name: np.array(values) for name, values in times.items()}


def row(name: str, per_clip_ms: np.ndarray) -> str:
    """A table row: median and the middle four fifths."""
    low, middle, high = np.quantile(per_clip_ms, [0.1, 0.5, 0.9])
    return f"{name:<44} {middle:7.2f}   {low:6.2f} - {high:.2f}"


def by_librosa(wave: torch.Tensor) -> Callable[[], object]:
    """librosa's mel spectrogram in decibels."""
    import librosa

    samples = wave.numpy()
    return lambda: librosa.power_to_db(
        librosa.feature.melspectrogram(y=samples, sr=RATE, n_fft=2048, hop_length=512, n_mels=128)
    )


def by_torchaudio(waves: torch.Tensor) -> Callable[[], object]:
    """torchaudio's defaults, the whole batch at once."""
    import torchaudio

    mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=2048, hop_length=512, n_mels=128)
    decibels = torchaudio.transforms.AmplitudeToDB(top_db=80)
    return lambda: decibels(mel(waves))


def by_kit(config: FrontendConfig, waves: torch.Tensor) -> Callable[[], object]:
    """This kit's frontend over a batch, floor included."""
    frontend = Frontend(config)
    return lambda: frontend(waves)


def stft_by_torch(wave: torch.Tensor, n_fft: int, hop: int) -> Callable[[], object]:
    """Only torch.stft and its energies, for scale."""
    window = torch.hann_window(n_fft)
    return lambda: torch.stft(wave, n_fft, hop, window=window, return_complex=True).abs().square()


def main() -> None:
    """Print the table and the ratios."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(BATCH, RATE * SECONDS, generator=generator) * 0.1
    one = waves[:1]
    mel = FrontendConfig(sample_rate=RATE, f_min_hz=0.0, top_db=80.0)
    fine = FrontendConfig(sample_rate=RATE, n_fft=4096, n_mels=256)
    stft = FrontendConfig(sample_rate=RATE, kind="stft", n_fft=1024, hop_length=128)
    alone = interleaved_ms(
        {
            "librosa, 2048/512, 128 mels": by_librosa(one[0]),
            "torchaudio, the same, alone": by_torchaudio(one),
            "kit, the same, alone": by_kit(mel, one),
            "torch.stft and energies, 4096/512": stft_by_torch(one, 4096, 512),
            "kit, 4096/512, 256 mels": by_kit(fine, one),
            "torch.stft and energies, 1024/128": stft_by_torch(one, 1024, 128),
            "kit, STFT 1024/128": by_kit(stft, one),
        },
        rounds=8,
        calls=20,
    )
    together = interleaved_ms(
        {
            f"torchaudio, 2048/512, 128 mels, batch of {BATCH}": by_torchaudio(waves),
            f"kit, the same, batch of {BATCH}": by_kit(mel, waves),
        },
        rounds=4,
        calls=2,
    )
    print(f"ms per clip of {SECONDS} s at {RATE} Hz, {torch.get_num_threads()} threads: median, middle 80 %")
    tables = {**alone, **{name: times / BATCH for name, times in together.items()}}
    for name, times in tables.items():
        print(row(name, times))
    librosa_ms, torchaudio_ms, kit_ms, *_ = (float(np.median(times)) for times in alone.values())
    torchaudio_batch, kit_batch = (float(np.median(times)) / BATCH for times in together.values())
    print(
        f"kit / librosa {kit_ms / librosa_ms:.2f}, kit / torchaudio alone {kit_ms / torchaudio_ms:.2f}",
        end="",
    )
    print(f", in batches {kit_batch / librosa_ms:.2f} and {kit_batch / torchaudio_batch:.2f}")


if __name__ == "__main__":
    main()
