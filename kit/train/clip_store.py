'''Load the clips of a training, and keep them in memory or, past a budget, on disk.'''

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kit.audio.frontend import FrontendConfig
from kit.core.errors import KitError
from kit.core.runtime import Runtime, memory_bytes, process_number, trim_memory
from kit.infer.cache import map_to_disk
from kit.infer.loader import SpectrogramLoader
from kit.infer.template import locate_clips


class ClipStore:
    '''Keeps the clips of a training in memory up to a budget, and beyond it in files mapped to memory.

    Where they do not fit as float32, all are kept as float16. That depends on budget and clips alone: the same seed
    gives the same result here.
    '''

    def __init__(self, memory_gb: float | None, seconds: float, frontends: Mapping[str, Any]) -> None:
        self.budget_bytes = (
            memory_bytes() // 2 if memory_gb is None else int(memory_gb * 1e9) // process_number('LOCAL_WORLD_SIZE', 1)
        )
        configs = {key: frontend.config for key, frontend in frontends.items()}
        values_per_s = sum(
            config.sample_rate if key == 'wave' else config.n_spec_rows * config.frames_per_s
            for key, config in configs.items()
        )
        needed = 4 * values_per_s * seconds
        self.dtype = torch.float32 if needed <= self.budget_bytes else torch.float16
        self.used_bytes = 0
        if self.dtype == torch.float32:
            return
        on_disk = max(0.0, needed / 2 - self.budget_bytes)
        folder = tempfile.gettempdir()
        figures = f'{needed / 1e9:.1f} GB as float32, and {self.budget_bytes / 1e9:.1f} GB of memory are for clips'
        kept = f'{needed / 2e9:.1f} GB as float16, of which {on_disk / 1e9:.1f} GB are in {folder}'
        print(f'note: {seconds / 3600:.1f} hours of audio take {figures}: they take {kept}', flush=True)
        free = shutil.disk_usage(folder).free
        if on_disk > free:
            space = f'{free / 1e9:.1f} GB free for {on_disk / 1e9:.1f} GB'
            raise KitError(f'{folder} has {space}: train on less audio, or set TMPDIR to a larger disk.')

    def keep(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        '''Return tensors as they are kept: in memory, or mapped to a file together.'''
        kept = [tensor.to('cpu', self.dtype).contiguous() for tensor in tensors]
        size = sum(tensor.nbytes for tensor in kept)
        if self.dtype == torch.float16 and self.used_bytes + size > self.budget_bytes:
            try:
                return map_to_disk(kept)
            except OSError as error:
                raise KitError(f'no clips fit {tempfile.gettempdir()} any more: {error}.') from error
        self.used_bytes += size
        return kept


class RawWaveforms:
    '''Stands for a frontend where waveforms are loaded and cut unchanged. Shape: [(T_i,)] -> [(1, T_i)]'''

    def __init__(self, config: FrontendConfig) -> None:
        self.config = config

    def spectrograms(self, waves: Sequence[Tensor]) -> list[Tensor]:
        '''Add a row axis to each waveform.'''
        return [wave[None] for wave in waves]

    def normalize(self, wave: Tensor) -> Tensor:
        '''The waveform as it is.'''
        return wave

    def floor(self, wave: Tensor) -> Tensor:
        '''The silence that pad_mode "min" appends.'''
        return wave.new_zeros(1, 1)


def load_clips(
    names: Sequence[str], audio: Path, frontends: Mapping[str, Any], runtime: Runtime, memory_gb: float | None = None
) -> tuple[SpectrogramLoader, dict[str, dict[int, Tensor]]]:
    '''Decode every clip once. Returns the loader, for seconds and failures, and each frontend's spectrograms.'''
    loader = SpectrogramLoader(locate_clips(names, audio), frontends, runtime.device, threads=runtime.threads)
    spectrograms: dict[str, dict[int, Tensor]] = {key: {} for key in frontends}
    store = None
    for chunk in loader.load_chunks('load', runtime.progress):
        store = store or ClipStore(memory_gb, loader.total_s, frontends)
        loaded = {key: loader.specs(chunk, key) for key in frontends}
        for key, (clips, specs) in loaded.items():
            if clips:
                spectrograms[key].update(zip(clips, store.keep(specs), strict=True))
            loader.drop(chunk, key)
        trim_memory()
    loader.print_failures(names)
    if not any(spectrograms.values()):
        raise KitError(f'none of the {len(names)} clips of the table can be decoded in {audio}.')
    return loader, spectrograms
