'''Run one tagger over spectrograms, in batches of equal length.'''

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
from kit.infer.backend import STATIC_ROWS, compile_network, fuse_norms, why_torch
from kit.models.families import memory_format_of
from kit.models.network import Network
from kit.models.tagger import Tagger

PRECISIONS = {'float32': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


@dataclass(frozen=True)
class WindowLogits:
    '''The logits of one clip's windows (W, K), and each one's span: first frame, frame after the last.'''

    logits: np.ndarray
    spans: tuple[Span, ...]


def compute_spectrograms(frontend: Frontend, waves: Sequence[Tensor]) -> list[Tensor]:
    '''Compute spectrograms to cache, normalized if that refers to the whole clip. Shape: [(T_i,)] -> [(M, N_i)]'''
    specs = frontend.spectrograms(waves)
    return [frontend.normalize(spec) for spec in specs] if frontend.config.reference == 'clip' else specs


def normalize_by_windows(frontend: Frontend, spec: Tensor, spans: Sequence[Span]) -> Tensor:
    '''Normalize each window of a spectrogram, and average a frame over the windows that hold it.

    A network trained on normalized windows is lost on a clip normalized as a whole.

    Shape:  (M, N), spans that cover N -> (M, N)
    '''
    total = torch.zeros_like(spec, dtype=torch.float32)
    count = torch.zeros(spec.shape[-1], device=spec.device)
    for start, end in spans:
        total[:, start:end] += frontend.normalize(spec[:, start:end])
        count[start:end] += 1
    return total / count


def cut_window(
    frontend: Frontend, spec: Tensor, span: Span, frames: int, pad_mode: str, normalize: bool = True
) -> Tensor:
    '''Cut a window from a cached spectrogram, normalize it and pad it. Shape: (M, N) -> (M, frames)'''
    piece = spec[:, span[0] : span[1]]
    if piece.dtype == torch.float16:  # kept so in training where memory is short
        piece = piece.float()
    if normalize and frontend.config.reference == 'window':
        piece = frontend.normalize(piece)
    return pad_frames(piece, frames, pad_mode, frontend.floor(piece) if pad_mode == 'min' else None)


def check_frames_mode(tagger: Tagger) -> None:
    '''Raise KitError unless mode frames can pool a network's maps over windows.'''
    network = tagger.network
    problem = ''
    if not isinstance(network, Network):
        problem = 'a custom network has no feature maps to pool'
    elif tagger.card.frontend.image_size:
        problem = 'frontend.image_size resizes an input, whose windows then have no fixed length'
    elif 0 in network.strides:
        problem = 'extra rows describe a whole input, and give a map without time'
    if problem:
        raise KitError(f'mode frames cannot predict: {problem}. Use mode windows.')


class Predictor:
    '''Runs a tagger on a device.

    It moves the tagger there when it is created: a training that shares the tagger continues in the memory format
    chosen here. With `fuse`, the first batch fuses batch norms into convolutions, in a copy that no later training
    changes; `fusion` describes it. With another `backend` than torch, the first batch then compiles that network;
    `compilation` names the backend that predicts, and why.
    '''

    def __init__(
        self,
        tagger: Tagger,
        device: torch.device,
        batch_frames: int | None = None,
        precision: str = 'float32',
        inference: InferenceConfig | None = None,
        fuse: bool = False,
        backend: str = 'torch',
    ) -> None:
        self.tagger = tagger
        self.device = device
        self.inference = inference or tagger.card.inference
        self.batch_frames = batch_frames or (4000 if device.type == 'cpu' else 32000)
        self.dtype = choose('precision', precision, PRECISIONS)
        self.layout = memory_format_of(tagger.network)
        if self.inference.mode == 'frames':
            check_frames_mode(tagger)
        self.network: nn.Module = tagger.network
        # The weights of fused convolutions may be too large for float16.
        self.fusion = 'to do' if fuse and self.dtype is None else 'off'
        self.backend = backend
        self.compilation = why_torch(backend, self.inference.mode, device.type, precision) or 'to do'
        # A compiled network computes so many at once, and smaller batches are padded.
        self.batch_clips = STATIC_ROWS if self.compilation == 'to do' else 64
        self.size = sum(values.numel() for values in tagger.network.parameters())
        # Equal for networks that take equally long.
        self.kind = f'{self.size} {tagger.card.network} {tagger.card.frontend} {self.inference}'
        tagger.to(device)
        tagger.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    @contextlib.contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        '''Evaluate without gradients; then restore each module's own mode.'''
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
        '''Compute the logits of every clip (M, N_i); None for a clip that the time budget did not reach.'''
        budget = budget or TimeBudget()
        frontend = self.tagger.frontend
        pad_mode = self.inference.pad_mode
        frames_per_s = self.tagger.card.frontend.frames_per_s
        inputs_of_clip = [self.inference.inputs(spec.shape[-1], frames_per_s) for spec in specs]
        pools_maps = self.inference.mode == 'frames'
        if pools_maps and frontend.config.reference == 'window':
            specs = [
                normalize_by_windows(frontend, spec, self.inference.spans(spec.shape[-1], frames_per_s))
                for spec in specs
            ]
        inputs = [(clip, *one) for clip, of_clip in enumerate(inputs_of_clip) for one in of_clip]
        lengths = [self.inference.input_frames(part, self.tagger.min_frames) for _, part, _ in inputs]
        logits: list[np.ndarray | None] = [None] * len(inputs)
        with self.evaluation_mode():
            for batch in batches_by_length(lengths, self.batch_frames, self.batch_clips):
                length = lengths[batch[0]]
                while batch and (count := budget.count_fitting(self.kind, len(batch), length)):
                    fitting = batch[:count]
                    batch = batch[count:]
                    parts = []
                    windows = []
                    for number in fitting:
                        clip, part, spans = inputs[number]
                        parts.append(cut_window(frontend, specs[clip], part, length, pad_mode, not pools_maps))
                        windows.append([(start - part[0], end - part[0]) for start, end in spans])
                    with budget.measure(self.kind, count * length):
                        rows_of_input = self.forward(torch.stack(parts), windows)
                    for number, rows in zip(fitting, rows_of_input, strict=True):
                        logits[number] = rows
        outputs: list[WindowLogits | None] = []
        first = 0
        for of_clip in inputs_of_clip:
            done = [rows for rows in logits[first : first + len(of_clip)] if rows is not None]
            first += len(of_clip)
            all_spans = tuple(span for _, spans in of_clip for span in spans)
            is_whole = len(done) == len(of_clip)
            outputs.append(WindowLogits(np.concatenate(done), all_spans) if is_whole else None)
        return outputs

    def forward(self, batch: Tensor, windows: Sequence[Sequence[Span]]) -> list[np.ndarray]:
        '''Compute the logits of a batch's windows; where memory is short, halve it and all later ones.

        Shape:  (B, M, N), windows of each -> B of (W_i, K)
        '''
        if len(batch) == 1 or batch.shape[0] * batch.shape[-1] <= self.batch_frames:
            try:
                return self.forward_batch(batch, windows)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
            torch.cuda.empty_cache()
            self.batch_frames = (len(batch) + 1) // 2 * batch.shape[-1]
        half = len(batch) // 2
        return self.forward(batch[:half], windows[:half]) + self.forward(batch[half:], windows[half:])

    def make_inputs(self, batch: Tensor) -> Tensor:
        '''Stack the network's input channels. Shape: (B, M, N) -> (B, C, M, N)'''
        return self.tagger.frontend.stack(batch)

    def forward_batch(self, batch: Tensor, windows: Sequence[Sequence[Span]]) -> list[np.ndarray]:
        '''Compute the logits of a batch that fits the device.'''
        spec = self.make_inputs(batch.to(self.device)).contiguous(memory_format=self.layout)
        if self.fusion == 'to do':
            self.network, self.fusion = fuse_norms(self.network, *spec.shape[1:3])
        if self.compilation == 'to do':
            rows = max(1, min(STATIC_ROWS, self.batch_frames // batch.shape[-1]))
            read = self.tagger.read_logits
            self.network, self.compilation = compile_network(self.network, spec, rows, self.backend, read)
        pools_maps = self.inference.mode == 'frames'
        output = self.network.window_logits(spec, windows) if pools_maps else self.network(spec)  # type: ignore[operator]
        logits = self.tagger.read_logits(output)
        counts = [len(spans) for spans in windows]
        expected = (sum(counts), len(self.tagger.card.classes))
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if got != expected:
            shapes = f'(B, C, M, N) to (B, K), {tuple(spec.shape)} to {expected}, got {got}'
            raise KitError(f'a network maps {shapes}: let it return clip logits alone.')
        return np.split(logits.float().cpu().numpy(), np.cumsum(counts)[:-1])
