"""Mix the channels of a sound to mono, block by block."""

import numpy as np

# Channels whose mean has less than this share of their energy cancel each other: -40 dB.
CANCELLED_SHARE = 1e-4


def lost_note(at_s: float, lost_s: float) -> str:
    """Return a note on damage whose place and length are known."""
    return f"{lost_s:.2f} s at {at_s:.1f} s are damaged and became silence"


def early_end_note(lost_s: float) -> str:
    """Return a note on a file that ends before the end that its header states."""
    length = f"{lost_s:.1f}" if lost_s >= 0.1 else f"{lost_s:.3f}"
    return f"the file ends early: its last {length} s are missing"


def channel_mean(block: np.ndarray) -> np.ndarray:
    """Return the mean over channels. Shape: (n, channels) -> (n,) float32"""
    channels = block.shape[1]
    mean: np.ndarray
    if channels >= 8:
        mean = block.mean(axis=1)
        return mean
    # Adding columns gives the digits of np.mean, several times as fast.
    mean = block[:, 0].astype(np.float32)
    for i in range(1, channels):
        mean += block[:, i]
    if channels > 1:
        mean /= channels
    return mean


class MonoMix:
    """The mean over channels of the blocks that were added, or one channel where the channels cancel each other.

    Units:  max_s in seconds, sample_rate in Hz
    """

    def __init__(self, sample_rate: int, max_s: float) -> None:
        self.sample_rate = sample_rate
        self.max_s = max_s
        self.samples = 0
        # Where the next block begins, if it is behind sound that is lost.
        self.resume_at = 0
        self.notes: list[str] = []
        self.blocks: list[np.ndarray] = []
        # One channel's blocks are kept only as long as the mean of all blocks is silent.
        self.channel: int | None = None
        self.channel_blocks: list[np.ndarray] = []
        self.energy = 0.0
        self.mean_energy = 0.0

    @property
    def seconds(self) -> float:
        """The duration so far."""
        return self.samples / self.sample_rate

    @property
    def is_cancelled(self) -> bool:
        """Whether the channels of all blocks so far cancel each other, or are silent."""
        return self.mean_energy <= CANCELLED_SHARE * self.energy

    def add(self, block: np.ndarray) -> None:
        """Add a block. Shape: (n, channels). Errors: ValueError for a sound longer than max_s"""
        if not len(block):
            return
        end = max(self.resume_at, self.samples) + len(block)
        if not end <= self.max_s * self.sample_rate:
            raise ValueError(f"it holds more than {self.max_s / 3600:.0f} hours, the limit")
        lost = self.resume_at - self.samples
        if lost > 0:
            self.notes.append(lost_note(self.seconds, lost / self.sample_rate))
            self.resume_at = 0
            self.add(np.zeros((lost, block.shape[1]), np.float32))
        self.samples += len(block)
        mean = channel_mean(block)
        if block.shape[1] > 1 and self.is_cancelled:
            self.watch_channels(block, mean)
        elif self.channel_blocks:
            # What follows damage comes as one channel.
            self.channel_blocks.append(mean)
        self.blocks.append(mean)

    def watch_channels(self, block: np.ndarray, mean: np.ndarray) -> None:
        """Compare the energy of the mean with that of the channels, and keep one channel while they cancel."""
        # Some 16,000 samples of a block are enough.
        step = max(1, len(block) // 16384)
        energies = np.square(block[::step], dtype=np.float64).mean(axis=0)
        self.energy += len(block) * float(energies.mean())
        self.mean_energy += len(block) * float(np.square(mean[::step], dtype=np.float64).mean())
        if self.channel is None and energies.any():
            self.channel = int(energies.argmax())
        if self.is_cancelled:
            self.channel_blocks.append(block[:, self.channel or 0].copy())
        else:
            self.channel_blocks = []

    def wave(self) -> np.ndarray:
        """Return the mono sound, and forget the blocks. Shape: -> (samples,) float32"""
        blocks = self.blocks
        if self.channel is not None and self.is_cancelled:
            blocks = self.channel_blocks
            self.notes.append("the channels cancel each other: one of them is used instead of their mean")
        self.blocks = []
        self.channel_blocks = []
        if len(blocks) == 1:
            return blocks[0]
        wave = np.empty(self.samples, np.float32)
        end = self.samples
        # Each block is freed when it is copied, so that memory holds the sound once.
        while blocks:
            block = blocks.pop()
            wave[end - len(block) : end] = block
            end -= len(block)
        return wave
