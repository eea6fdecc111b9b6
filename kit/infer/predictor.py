"""Batched inference of one tagger."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kit.audio.frontend import Frontend
from kit.audio.windows import InferenceConfig, Span, batches_by_length, pad_frames
from kit.core.errors import KitError, choose
from kit.core.runtime import full_float32
from kit.models.families import memory_format_of
from kit.models.tagger import Tagger

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class WindowLogits:
    """What a network says of a clip's windows. Shape: logits (W, K) float32, spans W in frames"""

    logits: np.ndarray
    spans: tuple[Span, ...]


def compute_spectrograms(frontend: Frontend, waves: Sequence[Tensor]) -> list[Tensor]:
    """Clips' spectrograms as they are kept, normalize_spec where that refers to the clip.

    Shape: waves (T_i,) -> list of (M, N_i)
    """
    specs = frontend.spectrograms(waves)
    return [frontend.normalize(s) for s in specs] if frontend.config.reference == "clip" else specs


def cut_window(frontend: Frontend, spec: Tensor, span: Span, frames: int, pad_mode: str) -> Tensor:
    """The piece of a kept spectrogram that a network hears: cut, normalize_spec, filled.

    Shape: spec (M, N) -> (M, frames)
    """
    piece = spec[:, span[0] : span[1]]
    if frontend.config.reference == "window":
        piece = frontend.normalize(piece)
    return pad_frames(piece, frames, pad_mode, frontend.floor(piece) if pad_mode == "min" else None)


class Predictor:
    """A tagger at work on a device, in batches of one length."""

    def __init__(
        self,
        tagger: Tagger,
        device: torch.device,
        batch_frames: int | None = None,
        precision: str = "float32",
        inference: InferenceConfig | None = None,
    ) -> None:
        self.tagger, self.device = tagger, device
        self.inference = inference or tagger.card.inference
        self.batch_frames = batch_frames or (4000 if device.type == "cpu" else 32000)
        self.dtype = choose("precision", precision, PRECISIONS)
        self.layout = memory_format_of(tagger.network)
        tagger.to(device)
        tagger.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Evaluation mode without gradients; then each part has its own mode again."""
        modes = [(part, part.training) for part in self.tagger.network.modules()]
        self.tagger.network.eval()
        try:
            cast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
            with torch.inference_mode(), full_float32(), cast:
                yield
        finally:
            for part, training in modes:
                part.training = training

    def predict(
        self, specs: Sequence[Tensor], stop: Callable[[], bool] = lambda: False
    ) -> list[WindowLogits | None]:
        """What the network says of every clip; None for one that `stop` cut.

        Shape: specs (M, N_i), one per clip -> one WindowLogits per clip
        """
        frames_per_s = self.tagger.card.frontend.frames_per_s
        spans = [self.inference.spans(spec.shape[-1], frames_per_s) for spec in specs]
        units = [
            (spec, span, self.inference.input_frames(span, self.tagger.min_frames))
            for spec, of_clip in zip(specs, spans, strict=True)
            for span in of_clip
        ]
        said: list[np.ndarray | None] = [None] * len(units)
        with self.at_work():
            for batch in batches_by_length([frames for *_, frames in units], self.batch_frames):
                if stop():
                    break
                pieces = [cut_window(self.tagger.frontend, *units[u], self.inference.pad_mode) for u in batch]
                for unit, row in zip(batch, self.forward(torch.stack(pieces)), strict=True):
                    said[unit] = row
        heard: list[WindowLogits | None] = []
        rows = iter(said)
        for of_clip in spans:
            logits = [row for row in itertools.islice(rows, len(of_clip)) if row is not None]
            whole = len(logits) == len(of_clip)
            heard.append(WindowLogits(np.stack(logits), tuple(of_clip)) if whole else None)
        return heard

    def forward(self, batch: Tensor) -> np.ndarray:
        """Logits of a batch, halved while memory lacks, as are later ones. Shape: (B, M, N) -> (B, K)"""
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
        """What the network is shown. Shape: (B, M, N) -> (B, C, M, N)"""
        return self.tagger.frontend.stack(batch)

    def forward_batch(self, batch: Tensor) -> np.ndarray:
        """Logits of a batch that fits the device. Shape: (B, M, N) -> (B, K) float32"""
        spec = self.make_inputs(batch.to(self.device)).contiguous(memory_format=self.layout)
        logits, wanted = self.tagger.network(spec), (len(spec), len(self.tagger.card.classes))
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if came != wanted:
            given = f"{tuple(spec.shape)} to {wanted}, got {came}"
            raise KitError(
                f"a network maps (B, C, M, N) to (B, K), {given}: let it return clip logits alone."
            )
        return np.asarray(logits.float().cpu().numpy())
