'''Checkpoints: save taggers as tensors and JSON, find them, and load them without running any code.'''

import functools
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kit.audio.decode import one_line
from kit.core.errors import KitError, check_kind
from kit.core.files import expand_pattern
from kit.models.archive import (
    FORMAT,
    check_tensor,
    content_digest,
    damaged_file,
    parse_card,
    read_content,
    save_archive,
)
from kit.models.families import build_network
from kit.models.network import InputShape, meta_device
from kit.models.own_network import NetworkBuilder, build_custom, fill_network
from kit.models.tagger import Tagger, TaggerCard, build_tagger, input_shape


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
        '''Build the tagger; `networks` builds networks that are not of the kit's families, by name.'''
        builders = {} if networks is None else networks
        if not isinstance(builders, Mapping):
            raise KitError(f"networks must map names to functions, {{'mine': build}}, got {networks!r}.")
        try:
            tagger = self.new_tagger(builders)
            fill_network(tagger.network, self.tensors)
        except KitError as error:
            raise KitError(f'{self.path}: {error}') from error
        except Exception as error:
            raise KitError(f'{self.path}: its network cannot be built: {one_line(error)[:200]}.') from error
        return tagger.eval()

    def new_tagger(self, builders: Mapping[str, NetworkBuilder]) -> Tagger:
        '''Build the tagger with random weights.'''
        card = self.card
        family = str(card.network.get('family'))
        name = family.removeprefix('custom:')
        if name == family:
            sizes = tuple((name, tensor.shape) for name, tensor in self.tensors.items())
            settings = json.dumps(card.network, sort_keys=True)
            check_sizes(settings, input_shape(card.frontend), len(card.classes), sizes)
            return build_tagger(card)
        if name not in builders:
            names = ', '.join(builders) or 'none'
            raise KitError(
                'it holds the tensors of a network of your own, not its code: in Python, pass '
                f'networks={{{name!r}: build}}, where build() returns the network (passed: {names}).'
            )
        return Tagger(card, build_custom(f'networks[{name!r}]', builders[name]))


def open_checkpoint(path: Path, content: Mapping[str, Any] | None = None) -> Checkpoint:
    '''Read a checkpoint, or parse its content where that was read before.'''
    if content is None:
        content = read_content(path)
    if 'members' in content:
        raise KitError(f'{path} is a stack of many taggers, not one: give it to submit or predict_clips.')
    try:
        card = TaggerCard.from_dict(parse_card(content['card']))
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

    A network that is not of the kit's families needs `networks={name: build}`, with the name it was saved under.
    '''
    return open_checkpoint(Path(path)).build(networks)


def find_models(items: str | Path | Tagger | Sequence[str | Path | Tagger]) -> list[tuple[str, Path | Tagger]]:
    '''List taggers and the checkpoints that paths and glob patterns name, each once, with their names.'''
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
            cure = 'make a tagger of it with wrap_network(network, frontend, classes)'
            raise KitError(f'got a {type(item).__name__} as a checkpoint: {cure}, where it returns logits.')
        paths = expand_pattern(item)
        if not paths:
            raise KitError(f"no checkpoint matches {str(item)!r}: e.g. --checkpoints 'run/fold_*.pt'.")
        for path in paths:
            found.setdefault(path.resolve(), (str(path), path))
    if not found:
        raise KitError("no checkpoints given: e.g. --checkpoints 'run/fold_*.pt'.")
    return list(found.values())
