"""Run one tagger over spectrograms, in batches of equal length."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kit.audio.frontend import Frontend
from kit.audio.windows import InferenceConfig, Span, batches_by_length, pad_frames
from kit.core.clock import TimeBudget
from kit.core.errors import KitError, choose
from kit.core.runtime import full_float32
from kit.models.families import memory_format_of
from kit.models.fusion import fuse_norms
from kit.models.tagger import Tagger

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class WindowLogits:
    """The logits of one clip's windows (W, K), and each one's span: first frame, frame after the last."""

    logits: np.ndarray
    spans: tuple[Span, ...]


def compute_spectrograms(frontend: Frontend, waves: Sequence[Tensor]) -> list[Tensor]:
    """Compute the spectrograms to cache, normalized if normalization refers to the whole clip.

    Shape:  waves (T_i,) -> list of (M, N_i)
    """
    specs = frontend.spectrograms(waves)
    if frontend.config.reference != "clip":
        return specs
    return [frontend.normalize(spec) for spec in specs]


def cut_window(frontend: Frontend, spec: Tensor, span: Span, frames: int, pad_mode: str) -> Tensor:
    """Cut a window from a cached spectrogram, normalize it and pad it. Shape: (M, N) -> (M, frames)"""
    piece = spec[:, span[0] : span[1]]
    if piece.dtype == torch.float16:  # kept so in training where memory is short
        piece = piece.float()
    if frontend.config.reference == "window":
        piece = frontend.normalize(piece)
    floor = frontend.floor(piece) if pad_mode == "min" else None
    return pad_frames(piece, frames, pad_mode, floor)


class Predictor:
    """Runs a tagger on a device.

    It moves the tagger there when it is created: a training that shares the tagger continues in the memory format
    chosen here. With `fuse`, at the first batch, a copy of the network takes its place whose batch norms are fused
    into its convolutions: later training would not change it. `fusion` says what was fused.
    """

    def __init__(
        self,
        tagger: Tagger,
        device: torch.device,
        batch_frames: int | None = None,
        precision: str = "float32",
        inference: InferenceConfig | None = None,
        fuse: bool = False,
    ) -> None:
        self.tagger = tagger
        self.device = device
        self.inference = inference or tagger.card.inference
        self.batch_frames = batch_frames or (4000 if device.type == "cpu" else 32000)
        self.dtype = choose("precision", precision, PRECISIONS)
        self.layout = memory_format_of(tagger.network)
        self.network: nn.Module = tagger.network
        # The weights of fused convolutions may be too large for float16.
        self.fusion = "to do" if fuse and self.dtype is None else "off"
        tagger.to(device)
        tagger.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    @contextlib.contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Evaluate without gradients; then restore each module's own mode."""
        modes = [(module, module.training) for module in self.tagger.network.modules()]
        self.tagger.network.eval()
        try:
            autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
            with torch.inference_mode(), full_float32(), autocast:
                yield
        finally:
            for module, training in modes:
                module.training = training

    def predict(self, specs: Sequence[Tensor], budget: TimeBudget | None = None) -> list[WindowLogits | None]:
        """Compute the logits of every clip (M, N_i); None for a clip that the time budget did not reach."""
        budget = budget or TimeBudget()
        frontend = self.tagger.frontend
        pad_mode = self.inference.pad_mode
        frames_per_s = self.tagger.card.frontend.frames_per_s
        spans_of_clip = [self.inference.spans(spec.shape[-1], frames_per_s) for spec in specs]
        windows = [(clip, span) for clip, spans in enumerate(spans_of_clip) for span in spans]
        lengths = [self.inference.input_frames(span, self.tagger.min_frames) for _, span in windows]
        logits: list[np.ndarray | None] = [None] * len(windows)
        with self.evaluation_mode():
            for batch in batches_by_length(lengths, self.batch_frames):
                if budget.should_stop():
                    break
                inputs = []
                for window in batch:
                    clip, span = windows[window]
                    inputs.append(cut_window(frontend, specs[clip], span, lengths[window], pad_mode))
                for window, row in zip(batch, self.forward(torch.stack(inputs)), strict=True):
                    logits[window] = row
        outputs: list[WindowLogits | None] = []
        first = 0
        for spans in spans_of_clip:
            done = [row for row in logits[first : first + len(spans)] if row is not None]
            first += len(spans)
            is_whole = len(done) == len(spans)
            outputs.append(WindowLogits(np.stack(done), tuple(spans)) if is_whole else None)
        return outputs

    def forward(self, batch: Tensor) -> np.ndarray:
        """Compute a batch's logits; where memory is short, halve it and all later ones. Shape: (B, M, N) -> (B, K)"""
        if len(batch) == 1 or batch.shape[0] * batch.shape[-1] <= self.batch_frames:
            try:
                return self.forward_batch(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
            torch.cuda.empty_cache()
            self.batch_frames = (len(batch) + 1) // 2 * batch.shape[-1]
        half = len(batch) // 2
        return np.concatenate([self.forward(batch[:half]), self.forward(batch[half:])])

    def make_inputs(self, batch: Tensor) -> Tensor:
        """Stack the network's input channels. Shape: (B, M, N) -> (B, C, M, N)"""
        return self.tagger.frontend.stack(batch)

    def forward_batch(self, batch: Tensor) -> np.ndarray:
        """Compute the logits of a batch that fits the device.

        Errors: KitError for a network whose output is not (B, K)
        """
        spec = self.make_inputs(batch.to(self.device)).contiguous(memory_format=self.layout)
        if self.fusion == "to do":
            self.network, self.fusion = fuse_norms(self.network, *spec.shape[1:3])
        logits = self.tagger.read_logits(self.network(spec))
        expected = (len(spec), len(self.tagger.card.classes))
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != expected:
            shapes = f"(B, C, M, N) to (B, K), {tuple(spec.shape)} to {expected}, got {found}"
            raise KitError(f"a network maps {shapes}: let it return clip logits alone.")
        return np.asarray(logits.float().cpu().numpy())
