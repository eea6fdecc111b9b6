'''Compare the front end's time per clip with librosa's and torchaudio's, in turn in one process.

python -m tests.benchmarks frontend
'''

import time
from collections.abc import Callable

import numpy as np
import torch

from kit.audio.frontend import Frontend, FrontendConfig

RATE = 44100
SECONDS = 5
BATCH = 64


def timed_ms(work: Callable[[], object]) -> float:
    '''Time one call. Units: milliseconds'''
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def interleaved_ms(works: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, np.ndarray]:
    '''Time blocks of calls of every function, in turn, so that noise slows them all alike.

    Each block starts with half as many calls that do not count: other libraries' threads are still busy, and
    caches are cold.

    Units: milliseconds per call
    '''
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            block = [timed_ms(work) for _ in range(calls + calls // 2)]
            times[name] += block[calls // 2 :]
    return {name: np.array(values) for name, values in times.items()}


def row_text(name: str, per_clip_ms: np.ndarray) -> str:
    '''Return a table row: the median and the range of the middle 80 %.'''
    low, middle, high = np.quantile(per_clip_ms, [0.1, 0.5, 0.9])
    return f'{name:<44} {middle:7.2f}   {low:6.2f} - {high:.2f}'


def librosa_mel(wave: torch.Tensor) -> Callable[[], object]:
    '''librosa's mel spectrogram in dB.'''
    import librosa

    samples = wave.numpy()
    return lambda: librosa.power_to_db(
        librosa.feature.melspectrogram(y=samples, sr=RATE, n_fft=2048, hop_length=512, n_mels=128)
    )


def torchaudio_mel(waves: torch.Tensor) -> Callable[[], object]:
    '''torchaudio's mel spectrogram in dB, the whole batch at once.'''
    import torchaudio

    mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=2048, hop_length=512, n_mels=128)
    decibels = torchaudio.transforms.AmplitudeToDB(top_db=80)
    return lambda: decibels(mel(waves))


def kit_spectrogram(config: FrontendConfig, waves: torch.Tensor) -> Callable[[], object]:
    '''This kit's front end on a batch.'''
    frontend = Frontend(config)
    return lambda: frontend(waves)


def torch_stft(wave: torch.Tensor, n_fft: int, hop: int) -> Callable[[], object]:
    '''Only torch.stft and its energies, for scale.'''
    window = torch.hann_window(n_fft)
    return lambda: torch.stft(wave, n_fft, hop, window=window, return_complex=True).abs().square()


def main() -> None:
    '''Print the table and the ratios.'''
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(BATCH, RATE * SECONDS, generator=generator) * 0.1
    one = waves[:1]
    mel = FrontendConfig(sample_rate=RATE, f_min_hz=0.0, top_db=80.0)
    fine = FrontendConfig(sample_rate=RATE, n_fft=4096, n_mels=256)
    stft = FrontendConfig(sample_rate=RATE, kind='stft', n_fft=1024, hop_length=128)
    single = interleaved_ms(
        {
            'librosa, 2048/512, 128 mels': librosa_mel(one[0]),
            'torchaudio, the same, one clip': torchaudio_mel(one),
            'kit, the same, one clip': kit_spectrogram(mel, one),
            'torch.stft and energies, 4096/512': torch_stft(one, 4096, 512),
            'kit, 4096/512, 256 mels': kit_spectrogram(fine, one),
            'torch.stft and energies, 1024/128': torch_stft(one, 1024, 128),
            'kit, STFT 1024/128': kit_spectrogram(stft, one),
        },
        rounds=8,
        calls=20,
    )
    batched = interleaved_ms(
        {
            f'torchaudio, 2048/512, 128 mels, batch of {BATCH}': torchaudio_mel(waves),
            f'kit, the same, batch of {BATCH}': kit_spectrogram(mel, waves),
        },
        rounds=4,
        calls=2,
    )
    print(f'ms per clip of {SECONDS} s at {RATE} Hz, {torch.get_num_threads()} threads: median, middle 80 %')
    tables = single | {name: times / BATCH for name, times in batched.items()}
    for name, times in tables.items():
        print(row_text(name, times))
    medians = [float(np.median(times)) for times in tables.values()]
    librosa_ms, torchaudio_ms, kit_ms = medians[:3]
    torchaudio_batch_ms, kit_batch_ms = medians[-2:]
    print(f'one clip: kit / librosa {kit_ms / librosa_ms:.2f}, kit / torchaudio {kit_ms / torchaudio_ms:.2f}')
    to_librosa = kit_batch_ms / librosa_ms
    to_torchaudio = kit_batch_ms / torchaudio_batch_ms
    print(f'in batches: kit / librosa {to_librosa:.2f}, kit / torchaudio {to_torchaudio:.2f}')


if __name__ == '__main__':
    main()
