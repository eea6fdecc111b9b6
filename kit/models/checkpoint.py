"""Save and load taggers as tensors and JSON."""

import glob
import json
import zipfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kit.audio.decode import one_line
from kit.audio.frontend import FrontendConfig
from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.core.files import write_whole
from kit.models.families import complete_network
from kit.models.tagger import Tagger, TaggerCard, build_tagger

FORMAT = 3
NetworkBuilder = Callable[[], nn.Module]


def wrap_network(
    network: nn.Module | Mapping[str, Tensor],
    frontend: FrontendConfig,
    classes: Sequence[str],
    *,
    name: str = "own",
    settings: dict[str, Any] | None = None,
    inference: InferenceConfig | None = None,
    prevalences: Sequence[float] | None = None,
    output: str = "probability",
    min_frames: int = 1,
) -> Tagger:
    """A tagger of any network from (B, C, M, N) to (B, K).

    Give `settings` (with their `family`) for a network of the kit's own families, which may come as a plain state
    dict; any other network goes by `name`, and whoever loads its checkpoint passes `networks={name: build}`.
    Shape:  prevalences (K,), 1 / K each unless given: what a file that cannot be heard gets
    Units:  min_frames, the shortest input that the network takes: shorter clips are filled up to it
    """
    card = TaggerCard(
        classes=tuple(classes),
        prevalences=() if prevalences is None else tuple(map(float, prevalences)),
        frontend=frontend,
        inference=inference or InferenceConfig(),
        network=complete_network(settings) if settings else {"family": f"custom:{name}"},
        min_frames=min_frames,
        output=output,
    )
    if settings is None:
        if not isinstance(network, nn.Module):
            raise KitError("a plain state dict needs settings={'family': ...}.")
        return Tagger(card, network)
    tensors = network.state_dict() if isinstance(network, nn.Module) else network
    return filled_tagger(build_tagger(card), tensors, "the state dict")


def filled_tagger(tagger: Tagger, tensors: Mapping[str, Tensor], name: str) -> Tagger:
    """A tagger with its network's tensors put in. Errors: KitError where they do not fit"""
    try:
        tagger.network.load_state_dict(tensors)
    except RuntimeError as error:
        raise KitError(f"{name}: its tensors do not fit its network: {one_line(error)[:300]}") from error
    return tagger.eval()


def checkpoint_content(tagger: Tagger) -> dict[str, Any]:
    """What a checkpoint holds: a format number, the card as JSON, the network's tensors."""
    card = json.dumps(tagger.card.to_dict())
    return {"format": FORMAT, "card": card, "tensors": tensors_of(tagger.network)}


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors as files hold them."""
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def save_tagger(path: str | Path, tagger: Tagger) -> None:
    """Write a checkpoint, whole, or not at all."""
    write_whole(Path(path), lambda handle: torch.save(checkpoint_content(tagger), handle))


def read_content(path: Path) -> dict[str, Any]:
    """What a file of the kit holds, its tensors mapped from disk. Errors: as read_checkpoint"""
    if not path.is_file():
        raise KitError(f"no checkpoint {path}: give .pt files that training wrote.")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no file of torch.save")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise KitError(
            f"{path} cannot be read as tensors and JSON ({one_line(error)[:160]}). The kit loads nothing executable: "
            "save the network's state_dict where it was made, and that with save_tagger."
        ) from error
    holds = list(map(str, content)) if isinstance(content, dict) else [type(content).__name__]
    if not {"format", "card"} < {*holds} or not {"tensors", "members"} & {*holds}:
        raise KitError(
            f"{path} is no checkpoint of this kit (it holds: {', '.join(holds[:4])}): "
            "save_tagger(path, wrap_network(network, frontend, classes))."
        )
    if (came := content["format"]) != FORMAT:
        cure = f"this kit reads {FORMAT}: use the kit that wrote it"
        raise KitError(f"{path} has checkpoint format {came}, {cure}.")
    return dict(content)


def read_checkpoint(
    path: Path, content: Mapping[str, Any] | None = None
) -> tuple[TaggerCard, dict[str, Tensor]]:
    """A checkpoint's card and tensors, from its content where that was read already.

    Errors: KitError for a file that is missing, not a checkpoint, from elsewhere, or of a later format
    """
    content = content or read_content(path)
    if "members" in content:
        raise KitError(f"{path} is a stack of many taggers, not one: give it to submit or predict_clips.")
    try:
        return TaggerCard.from_dict(dict(json.loads(content["card"]))), dict(content["tensors"])
    except KitError as error:
        raise KitError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:
        raise KitError(f"{path} is damaged: make it again.") from error


def load_tagger(
    path: str | Path,
    networks: Mapping[str, NetworkBuilder] | None = None,
    content: Mapping[str, Any] | None = None,
) -> Tagger:
    """The tagger that a checkpoint holds.

    `networks` builds networks that are not of the kit's families, by the name they were saved under.
    """
    known = {} if networks is None else networks
    if not isinstance(known, Mapping):
        raise KitError(f"networks wants functions by name, {{'mine': build}}, got {networks!r}.")
    card, tensors = read_checkpoint(Path(path), content)
    whose, own, name = str(card.network.get("family")).partition("custom:")
    if whose or not own:
        return filled_tagger(build_tagger(card), tensors, str(path))
    if name not in known:
        there = ", ".join(known) or "none"
        raise KitError(f"{path} holds your own network: give networks={{{name!r}: build}} (known: {there}).")
    return filled_tagger(Tagger(card, known[name]()), tensors, str(path))


def find_checkpoints(patterns: Sequence[str | Path]) -> list[Path]:
    """The checkpoint files that paths and patterns name. Errors: as find_models"""
    return [Path(name) for name, _ in find_models(patterns)]


def find_models(
    items: str | Path | Tagger | Sequence[str | Path | Tagger],
) -> list[tuple[str, Path | Tagger]]:
    """Taggers, and the checkpoints that paths and glob patterns name, each once; by name.

    Errors: KitError for a pattern that names no file, a network without a card, and where nothing is named
    """
    found: dict[Hashable, tuple[str, Path | Tagger]] = {}
    for item in [items] if isinstance(items, str | Path | nn.Module) else items:
        if isinstance(item, Tagger):
            found[len(found)] = f"tagger {len(found)}", item
            continue
        if isinstance(item, nn.Module):
            came = type(item).__name__
            raise KitError(f"got a {came} as a checkpoint: give wrap_network(network, frontend, classes).")
        text = str(item)
        names = [text] if Path(text).is_file() else sorted(glob.glob(text, recursive=True))
        paths = [path for path in map(Path, names) if path.is_file()]
        if not paths:
            raise KitError(f"no checkpoint matches {text!r}: e.g. --checkpoints 'run/fold_*.pt'.")
        for path in paths:
            found.setdefault(path.resolve(), (str(path), path))
    if not found:
        raise KitError("no checkpoints given: e.g. --checkpoints 'run/fold_*.pt'.")
    return list(found.values())
