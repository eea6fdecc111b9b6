'''Checkpoints: save taggers as tensors and JSON, find them, and load them without running any code.'''

import functools
import hashlib
import io
import json
import os
import pickletools
import zipfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from kit.core.config import brief
from kit.core.errors import KitError, check_kind, one_line
from kit.core.files import expand_pattern, write_whole
from kit.models.families import build_network
from kit.models.network import InputShape, meta_device
from kit.models.tagger import NetworkBuilder, Tagger, TaggerCard, build_custom, build_tagger, fill_network, input_shape

FORMAT = 3
# Limits that no real checkpoint reaches: the pickle of an EfficientNet-B0 has 11,000 operations and 1,300 tuples.
# Python crashes hashing 200,000 nested tuples.
MAX_CARD = 2_000_000
MAX_CARD_DEPTH = 64
MAX_DIRECTORY = 8 << 20
MAX_PICKLE = 32 << 20
MAX_OPERATIONS = 1_000_000
MAX_TUPLES = 80_000
SEAL_PREFIX = b'sha256:'


def check_tensor(name: Any, value: Any) -> int:
    '''A tensor's bytes.'''
    if not isinstance(name, str):
        raise KitError(f"a tensor's name is a {type(name).__name__}, wanted a text.")
    problem = ''
    if type(value) not in (Tensor, nn.Parameter):
        problem = f'a {type(value).__name__}'
    elif value.layout is not torch.strided or value.is_quantized or value.is_nested:
        problem = 'sparse, quantized or nested'
    elif value.device.type != 'cpu':
        problem = f'on the device {value.device}'
    elif not value.is_contiguous():
        problem = 'not contiguous'
    if problem:
        raise KitError(f'{name[:80]} is {problem}, where a plain tensor is needed: leave it out of the state dict.')
    return int(value.nbytes)


def content_digest(card: str, tensors: Mapping[str, Tensor]) -> str:
    '''Hash a card and its tensors: a flipped bit is noticed.'''
    digest = hashlib.sha256(card.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parse_card(text: Any) -> dict[str, Any]:
    '''Parse a card's JSON.'''
    if not isinstance(text, str) or len(text) > MAX_CARD:
        got = f'{len(text)} characters' if isinstance(text, str) else type(text).__name__
        raise KitError(f'its card is {got}, wanted JSON of at most {MAX_CARD}.')
    card = json.loads(text)
    if not isinstance(card, dict):
        raise KitError(f'its card is a {type(card).__name__}, wanted a table of names and values.')
    level: list[Any] = [card]
    for _ in range(MAX_CARD_DEPTH):
        groups = [value.values() if isinstance(value, dict) else value for value in level]
        level = [item for group in groups for item in group if isinstance(item, dict | list)]
    if level:
        raise KitError(f'its card is nested more than {MAX_CARD_DEPTH} deep.')
    return card


def save_archive(path: Path, content: Any) -> None:
    '''Write what torch.save makes, whole, with the file's SHA-256 as the archive's comment.

    So all damage is noticed: torch.load ignores the archive's own checksums, and some bytes altogether.
    '''

    def write(handle: Any) -> None:
        torch.save(content, handle)
        handle.flush()
        handle.seek(0)
        seal = SEAL_PREFIX + hashlib.file_digest(handle, 'sha256').hexdigest().encode()
        # An archive's last two bytes are the length of its comment, 0 until here.
        handle.seek(-2, os.SEEK_END)
        handle.write(len(seal).to_bytes(2, 'little') + seal)

    write_whole(path, write)


def check_seal(file: IO[bytes], comment: bytes) -> bool:
    '''Whether a file has the comment of save_archive; false without any.

    Errors: ValueError where the comment is another one, or not the file's end
    '''
    end = file.seek(-22 - len(comment), os.SEEK_END)
    record = file.read(22)
    is_last = record[:4] == b'PK\5\6' and record[20:] == len(comment).to_bytes(2, 'little')
    if is_last and not comment:
        return False
    file.seek(0)
    digest = hashlib.sha256()
    for start in range(0, end + 20, 1 << 20):
        digest.update(file.read(min(1 << 20, end + 20 - start)))
    digest.update(bytes(2))
    if not is_last or comment != SEAL_PREFIX + digest.hexdigest().encode():
        raise ValueError('its content is not what was written: copy the file again')
    return True


class ShortReads(io.FileIO):
    '''A file that reads no zip archive's directory of any length into memory.'''

    def read(self, size: int | None = -1) -> bytes:
        size = MAX_DIRECTORY if size is None or size < 0 else size
        if size > MAX_DIRECTORY:
            raise ValueError('it has too many parts')
        return super().read(size)


def check_archive(path: Path) -> None:
    '''Raise ValueError unless a file is a whole archive of torch.save that takes no more memory than the file.

    Neither torch.load nor zipfile limits what a small file can grow to; torch.load checks no checksums.
    '''
    with ShortReads(path) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError('it is no file of torch.save')
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type or entry.compress_size != entry.file_size for entry in entries):
                raise ValueError('it is compressed: torch.save writes it as it is')
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError('its parts overlap')
            damaged = '' if check_seal(file, archive.comment) else archive.testzip()
            if damaged:
                raise ValueError(f'{damaged[:80]} in it is damaged: copy the file again')
            for entry in entries:
                if not entry.filename.lower().endswith('data.pkl'):  # torch ignores the case
                    continue
                if entry.file_size > MAX_PICKLE:
                    raise ValueError('its pickle is too long')
                with archive.open(entry) as part:
                    check_pickle(b''.join(iter(functools.partial(part.read, 1 << 20), b'')))


def check_pickle(pickled: bytes) -> None:
    '''Raise ValueError unless a pickle is short and names nothing but tensors.'''
    tuples = 0
    for count, (operation, value, _) in enumerate(pickletools.genops(pickled)):
        tuples += operation.name.startswith('TUPLE')
        if count > MAX_OPERATIONS or tuples > MAX_TUPLES:
            raise ValueError('its pickle has too many operations')
        # torch.load would also let a bytearray fill any memory.
        if operation.name == 'GLOBAL' and not str(value).startswith(('torch', 'collections OrderedDict')):
            raise ValueError(f'it holds {str(value)[:80]}')


def damaged_file(path: Path, error: Exception) -> KitError:
    '''The error for a file whose content cannot be used.'''
    return KitError(f'{path} is damaged ({one_line(error)[:200].rstrip(".")}): copy it or make it again.')


def load_archive(path: Path) -> Any:
    '''Load what torch.save wrote; its tensors stay mapped from disk.'''
    if not path.is_file():
        raise KitError(f'no checkpoint {path}: name .pt files that training wrote.')
    try:
        check_archive(path)
        return torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception as error:
        reason = one_line(error).rpartition('WeightsUnpickler error: ')[2]
        raise KitError(
            f'{path} cannot be read as tensors and JSON ({reason[:160]}). The kit loads nothing '
            "executable: save the network's state_dict where it was made, and that with save_tagger."
        ) from error


def read_content(path: Path, content: Any = None) -> dict[str, Any]:
    '''Read a checkpoint or a stack, or check what was loaded; its tensors stay mapped from disk.'''
    content = load_archive(path) if content is None else content
    names = content if isinstance(content, dict) else [content]
    parts = [name[:80] if isinstance(name, str) else type(name).__name__ for name in names]
    if not {'format', 'card'} <= set(parts) or not {'tensors', 'members'} & set(parts):
        raise KitError(
            f'{path} is no checkpoint of this kit (it holds: {", ".join(parts[:4])}). For a network of your '
            'own: save_tagger(path, wrap_network(network, frontend, classes)), where it returns logits.'
        )
    number = content['format']
    if not isinstance(number, int) or number != FORMAT:
        got = f'checkpoint format {brief(number)}, this kit reads {FORMAT}'
        raise KitError(f'{path} has {got}: use the kit that wrote it.')
    try:
        tables = [member['tensors'] for member in content.get('members', [content])]
        tables += content.get('networks', ())
        size = sum(check_tensor(name, value) for table in tables for name, value in table.items())
        if size > path.stat().st_size:
            raise KitError(f'its tensors hold {size} bytes, more than the file.')
    except Exception as error:
        raise damaged_file(path, error) from error
    return dict(content)


@functools.lru_cache(maxsize=64)
def check_sizes(network: str, shape: InputShape, classes: int, sizes: tuple[tuple[str, torch.Size], ...]) -> None:
    '''Raise KitError unless tensors of these sizes fill a network, before it takes memory.'''
    with meta_device():
        tensors = {name: torch.empty(size) for name, size in sizes}
        fill_network(build_network(json.loads(network), shape, classes), tensors, assign=True)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    '''Return copies of a network's tensors on the CPU, contiguous.'''
    tensors = {}
    for name, value in network.state_dict().items():
        if nn.parameter.is_lazy(value):
            raise KitError(f'{name} has no shape yet: run a batch through the network, then save it.')
        if isinstance(value, Tensor) and value.device.type != 'meta' and value.layout is torch.strided:
            value = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        check_tensor(name, value)
        tensors[name] = value
    return tensors


def checkpoint_content(tagger: Tagger) -> dict[str, Any]:
    '''What a checkpoint holds.'''
    card = json.dumps(tagger.card.to_dict())
    parse_card(card)
    tensors = tensors_of(tagger.network)
    return {'format': FORMAT, 'card': card, 'tensors': tensors, 'digest': content_digest(card, tensors)}


def save_tagger(path: str | Path, tagger: Tagger) -> None:
    '''Write a checkpoint. A failure or a kill leaves the file as it was.'''
    for value, kind in ((path, str | Path), (tagger, Tagger)):
        check_kind('an argument of save_tagger(path, tagger)', [value], kind, 'make a tagger with wrap_network')
    save_archive(Path(path), checkpoint_content(tagger))


@dataclass(frozen=True)
class Checkpoint:
    '''One tagger's checkpoint, read and checked, with the digest of its content.'''

    path: Path
    card: TaggerCard
    tensors: dict[str, Tensor]
    digest: str

    def build(self, networks: Mapping[str, NetworkBuilder] | None = None) -> Tagger:
        '''Build the tagger; `networks` builds networks of no family of the kit, by name.'''
        if not isinstance(networks, Mapping | None):
            raise KitError(f"networks must map names to functions, {{'mine': build}}, got {networks!r}.")
        try:
            tagger = self.new_tagger(networks or {})
            fill_network(tagger.network, self.tensors)
        except KitError as error:
            raise KitError(f'{self.path}: {error}') from error
        except Exception as error:
            raise KitError(f'{self.path}: its network cannot be built: {one_line(error)[:200]}.') from error
        return tagger.eval()

    def new_tagger(self, builders: Mapping[str, NetworkBuilder]) -> Tagger:
        '''Build the tagger with random weights.'''
        card = self.card
        name = card.family.removeprefix('custom:')
        if name == card.family:
            sizes = tuple((name, tensor.shape) for name, tensor in self.tensors.items())
            check_sizes(json.dumps(card.network, sort_keys=True), input_shape(card.frontend), len(card.classes), sizes)
            return build_tagger(card)
        if name not in builders:
            raise KitError(
                f'it holds the tensors of a network of your own, not its code: in Python, pass networks={{{name!r}: '
                f'build}}, where build() returns the network (passed: {", ".join(builders) or "none"}).'
            )
        return Tagger(card, build_custom(f'networks[{name!r}]', builders[name]))


def open_checkpoint(path: Path, content: Mapping[str, Any] | None = None) -> Checkpoint:
    '''Read a checkpoint, or parse its content where that was read before.'''
    content = read_content(path) if content is None else content
    if 'members' in content:
        raise KitError(f'{path} is a stack of many taggers, not one: give it to submit or predict_clips.')
    try:
        card = TaggerCard(**parse_card(content['card']))
        tensors = dict(content['tensors'])
        digest = content_digest(content['card'], tensors)
    except KitError as error:
        raise KitError(f'{path}: {one_line(error)[:1000]}') from error
    except Exception as error:
        raise damaged_file(path, error) from error
    if content.get('digest') != digest:
        raise KitError(f'{path} is damaged: its tensors differ from what was saved. Copy or train it again.')
    return Checkpoint(path, card, tensors, digest)


def load_tagger(path: str | Path, networks: Mapping[str, NetworkBuilder] | None = None) -> Tagger:
    '''Load the tagger of a checkpoint, in evaluation mode.

    A network of no family of the kit needs `networks={name: build}`, with the name it was saved under.
    '''
    return open_checkpoint(Path(path)).build(networks)


def find_models(items: str | Path | Tagger | Sequence[str | Path | Tagger]) -> list[tuple[str, Path | Tagger]]:
    '''List taggers and the checkpoints of paths and glob patterns, each once, with their names.'''
    if isinstance(items, str | Path | nn.Module):
        items = [items]
    cure = 'give paths, patterns or taggers; wrap_ensemble(build, states, ...) makes taggers of state dicts'
    check_kind('checkpoints', [items], list | tuple, cure)
    check_kind('a checkpoint', items, str | Path | nn.Module, cure)
    found: dict[Hashable, tuple[str, Path | Tagger]] = {}
    for item in items:
        if isinstance(item, Tagger):
            found[len(found)] = (f'tagger {len(found)}', item)
            continue
        if isinstance(item, nn.Module):
            cure = 'make a tagger of it with wrap_network(network, frontend, classes), where it returns logits'
            raise KitError(f'got a {type(item).__name__} as a checkpoint: {cure}.')
        paths = expand_pattern(item)
        if not paths:
            example = f'{item}/fold_*.pt' if Path(item).is_dir() else 'run/fold_*.pt'
            raise KitError(f'no checkpoint matches {str(item)!r}: e.g. --checkpoints {example!r}.')
        for path in paths:
            found.setdefault(path.resolve(), (str(path), path))
    if not found:
        raise KitError("no checkpoints given: e.g. --checkpoints 'run/fold_*.pt'.")
    return list(found.values())
