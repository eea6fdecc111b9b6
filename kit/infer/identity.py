"""What tells two models apart: their tensors, their settings and the user's code."""

import inspect
import uuid
from collections.abc import Sequence
from typing import Any

from torch import nn

from kit.audio.decode import Decoder
from kit.core.files import text_digest
from kit.infer.stack import ModelSpec
from kit.models.archive import content_digest
from kit.models.checkpoint import Checkpoint, tensors_of
from kit.models.tagger import Tagger


def model_identity(model: ModelSpec) -> str:
    """Return a text that is equal for models with equal cards and tensors, and for taggers with equal code."""
    if isinstance(model.source, Checkpoint):
        return model.source.digest
    network = model.source.network
    content = content_digest(model.card.canonical_json(), tensors_of(network))
    return content + code_identity(own_classes(network))


def code_identity(objects: Sequence[Any]) -> str:
    """Return a text that is equal for classes and functions with equal source code, else one that never comes again.

    So predictions that the user's old code made are not used for the new.
    """
    try:
        return text_digest(*map(inspect.getsource, objects))
    except (OSError, TypeError):
        return uuid.uuid4().hex


def own_classes(network: nn.Module) -> list[type]:
    """Return the classes of a network's modules that are the user's, and not the kit's, torch's or timm's."""
    classes = {type(module) for module in network.modules()}
    libraries = ('torch.', 'timm.', Tagger.__module__.partition('.')[0])
    return sorted((c for c in classes if not c.__module__.startswith(libraries)), key=lambda c: c.__qualname__)


def decoder_functions(decoders: Sequence[Decoder] | None) -> list[Any]:
    """Return the functions with which the user reads files."""
    return [function for decoder in decoders or () for function in (decoder.read, decoder.duration_s)]
