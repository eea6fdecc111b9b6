"""Checkpoints: save taggers as tensors and JSON, find them, and load them without running any code."""

import glob
import hashlib
import json
import zipfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kit.audio.decode import one_line
from kit.audio.frontend import FrontendConfig
from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.core.files import write_whole
from kit.models.families import FAMILIES, complete_network
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
    """Make a tagger of any network that returns logits (not probabilities).

    A checkpoint holds the network's tensors, never its code. For one of the kit's families pass `settings` with its
    `family`: the checkpoint stores them, and `network` may be a plain state dict. Any other network needs a function
    that builds it: `load_tagger(path, networks={name: build})`.

    Shape:  network (B, C, M, N) -> logits (B, K); prevalences (K,), by default 1 / K each: the prediction for
            a clip that cannot be read
    Units:  min_frames, the network's shortest input: shorter clips are padded to it
    """
    if isinstance(classes, str):
        raise KitError(f"classes is a list of names, got the text {classes!r}: pass [{classes!r}].")
    if callable(network) and not isinstance(network, nn.Module):
        raise KitError("network is a function that builds one: call it, wrap_network(build(), ...).")
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
            families = ", ".join(FAMILIES)
            raise KitError(
                f"a plain state dict needs settings={{'family': ...}}, which build its network ({families}). For "
                "another network, load the state dict into your module and pass the module."
            )
        return Tagger(card, unwrap_network(network))
    tensors = unwrap_network(network).state_dict() if isinstance(network, nn.Module) else network
    tagger = build_tagger(card)
    fits = tensors.keys() == tagger.network.state_dict().keys()
    return fill_tagger(tagger, tensors if fits else strip_prefixes(tensors), "the state dict")


def unwrap_network(network: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DistributedDataParallel, AveragedModel or torch.compile."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    while isinstance(network, wrappers) or hasattr(network, "_orig_mod"):
        network = getattr(network, "module" if isinstance(network, wrappers) else "_orig_mod")
    return network


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put before every name of a state dict: module., _orig_mod. or model."""
    names = dict(tensors)
    names.pop("n_averaged", None)  # the counter of AveragedModel is no weight
    for prefix in ("module.", "_orig_mod.", "model.") * 2:
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def fill_tagger(tagger: Tagger, tensors: Mapping[str, Tensor], source: str) -> Tagger:
    """Load tensors into a tagger's network. Errors: KitError, naming their source, where they do not fit"""
    try:
        tagger.network.load_state_dict(tensors)
    except RuntimeError as error:
        raise KitError(f"{source}: its tensors do not fit its network: {one_line(error)[:300]}") from error
    return tagger.eval()


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors on the CPU and contiguous."""
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def checkpoint_content(tagger: Tagger) -> dict[str, Any]:
    """Return what a checkpoint holds."""
    card = json.dumps(tagger.card.to_dict())
    tensors = tensors_of(tagger.network)
    return {"format": FORMAT, "card": card, "tensors": tensors, "digest": content_digest(card, tensors)}


def content_digest(card: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash a card and its tensors, so that a flipped bit is noticed."""
    digest = hashlib.sha256(card.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tagger(path: str | Path, tagger: Tagger) -> None:
    """Write a checkpoint. A failure or a kill leaves the file as it was."""
    arguments: tuple[Any, Any] = (path, tagger)
    if not isinstance(arguments[0], str | Path) or not isinstance(arguments[1], Tagger):
        types = " and ".join(type(argument).__name__ for argument in arguments)
        raise KitError(
            f"save_tagger(path, tagger) got {types}: make a tagger with wrap_network(network, ...)."
        )
    write_whole(Path(path), lambda handle: torch.save(checkpoint_content(tagger), handle))


def read_content(path: Path) -> dict[str, Any]:
    """Read a checkpoint or a stack; its tensors stay mapped from disk."""
    if not path.is_file():
        raise KitError(f"no checkpoint {path}: name .pt files that training wrote.")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no file of torch.save")
        # torch.load does not check the archive's checksums.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"{damaged} in it is damaged: copy the file again")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise KitError(
            f"{path} cannot be read as tensors and JSON ({one_line(error)[:160]}). The kit loads nothing "
            "executable: save the network's state_dict where it was made, and that with save_tagger."
        ) from error
    parts = list(map(str, content)) if isinstance(content, dict) else [type(content).__name__]
    if not {"format", "card"} <= set(parts) or not {"tensors", "members"} & set(parts):
        raise KitError(
            f"{path} is no checkpoint of this kit (it holds: {', '.join(parts[:4])}). For a network of your "
            "own: save_tagger(path, wrap_network(network, frontend, classes)), where it returns logits."
        )
    number = content["format"]
    if number == 2:
        raise KitError(f"{path}: checkpoint format 2 was never published: train again with this version.")
    if number != FORMAT:
        formats = f"checkpoint format {number}, this kit reads {FORMAT}"
        raise KitError(f"{path} has {formats}: use the kit that wrote it.")
    return dict(content)


@dataclass(frozen=True)
class Checkpoint:
    """One tagger's checkpoint, read and checked; its network is not built yet."""

    path: Path
    card: TaggerCard
    tensors: dict[str, Tensor]

    def build(self, networks: Mapping[str, NetworkBuilder] | None = None) -> Tagger:
        """Build the tagger; `networks` builds networks that are not of the kit's families, by name."""
        builders = {} if networks is None else networks
        if not isinstance(builders, Mapping):
            raise KitError(f"networks must map names to functions, {{'mine': build}}, got {networks!r}.")
        family = str(self.card.network.get("family"))
        name = family.removeprefix("custom:")
        if name == family:
            tagger = build_tagger(self.card)
        elif name in builders:
            tagger = Tagger(self.card, build_custom(name, builders[name]))
        else:
            names = ", ".join(builders) or "none"
            raise KitError(
                f"{self.path} holds the tensors of a network of your own, not its code: pass "
                f"networks={{{name!r}: build}} in Python, where build() returns the network (passed: {names}). The "
                "command line cannot build it."
            )
        return fill_tagger(tagger, self.tensors, str(self.path))


def build_custom(name: str, builder: NetworkBuilder) -> nn.Module:
    """Build a network of the user's. Errors: KitError for a module in place of a builder, and for what it raises"""
    if isinstance(builder, nn.Module):
        came = type(builder).__name__
        raise KitError(
            f"networks[{name!r}] is a {came}: pass the function that builds it, build, not build()."
        )
    try:
        network = builder()
    except Exception as error:
        raise KitError(
            f"networks[{name!r}]() failed: {one_line(error)[:200]}. It is called without arguments."
        ) from error
    if not isinstance(network, nn.Module):
        raise KitError(f"networks[{name!r}]() returned a {type(network).__name__}, not a torch.nn.Module.")
    return unwrap_network(network)


def open_checkpoint(path: Path, content: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read a checkpoint, or parse its content where that was read before."""
    if content is None:
        content = read_content(path)
    if "members" in content:
        raise KitError(f"{path} is a stack of many taggers, not one: give it to submit or predict_clips.")
    try:
        card = TaggerCard.from_dict(dict(json.loads(content["card"])))
        tensors = dict(content["tensors"])
        is_whole = content.get("digest") == content_digest(content["card"], tensors)
    except KitError as error:
        raise KitError(f"{path}: {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise KitError(f"{path} is damaged: train it again.") from error
    if not is_whole:
        raise KitError(f"{path} is damaged: its tensors differ from what was saved. Copy or train it again.")
    return Checkpoint(path, card, tensors)


def load_tagger(
    path: str | Path,
    networks: Mapping[str, NetworkBuilder] | None = None,
    content: Mapping[str, Any] | None = None,
) -> Tagger:
    """Load the tagger of a checkpoint, in evaluation mode.

    A network that is not of the kit's families needs `networks={name: build}`, with the name it was saved under.
    """
    return open_checkpoint(Path(path), content).build(networks)


def find_checkpoints(patterns: Sequence[str | Path]) -> list[Path]:
    """Find the checkpoint files that paths and glob patterns name."""
    return [Path(name) for name, _ in find_models(patterns)]


def find_models(
    items: str | Path | Tagger | Sequence[str | Path | Tagger],
) -> list[tuple[str, Path | Tagger]]:
    """List taggers and the checkpoints that paths and glob patterns name, each once, with their names."""
    if isinstance(items, str | Path | nn.Module):
        items = [items]
    found: dict[Hashable, tuple[str, Path | Tagger]] = {}
    for item in items:
        if isinstance(item, Tagger):
            found[len(found)] = (f"tagger {len(found)}", item)
            continue
        if isinstance(item, nn.Module):
            raise KitError(
                f"got a {type(item).__name__} as a checkpoint: make a tagger of it with "
                "wrap_network(network, frontend, classes), where it returns logits."
            )
        pattern = str(item)
        # A path with brackets is a file's name before it is a pattern.
        names = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        paths = [path for path in map(Path, names) if path.is_file()]
        if not paths:
            raise KitError(f"no checkpoint matches {pattern!r}: e.g. --checkpoints 'run/fold_*.pt'.")
        for path in paths:
            found.setdefault(path.resolve(), (str(path), path))
    if not found:
        raise KitError("no checkpoints given: e.g. --checkpoints 'run/fold_*.pt'.")
    return list(found.values())
