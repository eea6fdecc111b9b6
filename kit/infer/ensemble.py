"""Run every model of an ensemble over every clip."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.decode import one_line
from kit.audio.frontend import Frontend
from kit.audio.windows import InferenceConfig, pool_windows
from kit.core.clock import Stopwatch
from kit.core.errors import KitError
from kit.infer.cache import PredictionCache
from kit.infer.loader import SpectrogramLoader
from kit.infer.predictor import Predictor, WindowLogits
from kit.models.tagger import Tagger, TaggerCard


@dataclass(eq=False)
class EnsembleMember:
    """One model of an ensemble at work."""

    name: str
    predictor: Predictor
    ledger: PredictionCache = field(default_factory=PredictionCache)
    weight: float = 1.0
    run: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)
    heard: set[int] = field(default_factory=set)
    failed_clips: dict[int, str] = field(default_factory=dict)
    failure: str | None = None

    def __post_init__(self) -> None:
        self.tagger = self.predictor.tagger

    @property
    def card(self) -> TaggerCard:
        """What is known of its tagger."""
        return self.tagger.card

    @property
    def frontend_key(self) -> str:
        """Equal where spectrograms can be shared."""
        return self.card.frontend.digest_text()


def collect_frontends(members: Sequence[EnsembleMember], device: torch.device) -> dict[str, Frontend]:
    """Each distinct frontend once, on the device."""
    return {m.frontend_key: m.tagger.frontend.to(device) for m in members}


UNPOOLED = (
    "rank scores without a calibration cannot be pooled over windows: run `oof` on the run, which fits one, or "
    "listen in mode full."
)


def predict_ensemble(
    members: Sequence[EnsembleMember],
    loader: SpectrogramLoader,
    take: Callable[[EnsembleMember, int, WindowLogits], None],
    *,
    stop: Callable[[], bool] = lambda: False,
    before_batches: Callable[[], object] = lambda: None,
    after_chunk: Callable[[EnsembleMember, float], object] = lambda member, seconds: None,
    after_member: Callable[[EnsembleMember], object] = lambda member: None,
) -> None:
    """Let every model hear every burst, in order; `take` gets each clip's logits.

    A model that fails is noted with its reason, and the others go on. `stop` is asked between batches.
    """
    for position, member in enumerate(members):
        last_user = all(m.frontend_key != member.frontend_key for m in members[position + 1 :])
        for number in range(len(loader.chunks)):
            if stop():
                return
            try:
                predict_chunk(member, loader, number, take, stop, before_batches)
            except Exception as error:
                member.failure = one_line(error)[:500]
                break
            if last_user:
                loader.drop(number, member.frontend_key)
            after_chunk(member, loader.chunk_seconds(number))
        if last_user:
            loader.retire(member.frontend_key)
        member.ledger.flush()
        after_member(member)


def predict_chunk(
    member: EnsembleMember,
    loader: SpectrogramLoader,
    number: int,
    take: Callable[[EnsembleMember, int, WindowLogits], None],
    stop: Callable[[], bool],
    before_batches: Callable[[], object],
) -> None:
    """A model hears a burst, or its ledger remembers it.

    A burst that is only partly remembered is heard whole, so that a resumed job forms the same batches; clips of
    one content have one answer. A clip of which the network says no finite number is noted as failed.
    """
    sources, digests = loader.load_chunk(number), loader.digests
    if not all(digests[i] in member.ledger for i in sources):
        sources, specs = loader.specs(number, member.frontend_key)
        before_batches()
        with member.watch.measure("network"), loader.watch.measure("network"):
            heard = member.predictor.predict(specs, stop)
        said_of = {i: said for i, said in zip(sources, heard, strict=True) if said}
        finite = [i for i, said in said_of.items() if np.isfinite(said.logits).all()]
        wrong = said_of.keys() - finite
        member.failed_clips |= dict.fromkeys(wrong, "the network's answer is no finite number")
        member.ledger.add((digests[i], said_of[i]) for i in finite)
    for i in sources:
        if digests[i] in member.ledger:
            try:
                take(member, i, member.ledger.entries[digests[i]])
                member.heard.add(i)
            except KitError as error:
                member.failed_clips[i] = str(error)


def clip_probabilities(tagger: Tagger, inference: InferenceConfig, logits: np.ndarray) -> np.ndarray:
    """One score per class from windows' logits: calibrated, as probabilities, pooled.

    Rank scores without a calibration stay as they are, fit for rank blends alone.
    Shape:  logits (W, K) -> (K,)
    Errors: KitError where uncalibrated rank scores would have to be pooled over windows
    """
    if tagger.card.calibrated:
        return pool_windows(tagger.probabilities(torch.from_numpy(logits)), inference).numpy()
    if len(logits) > 1:
        raise KitError(UNPOOLED)
    return np.asarray(logits[0])


def by_source(reasons: Mapping[int, str], names: Sequence[str]) -> dict[str, str]:
    """Reasons by the names of their sources, in order."""
    return {names[i]: reason for i, reason in sorted(reasons.items())}


def rounded_spans(watch: Stopwatch) -> dict[str, list[list[float]]]:
    """When each name was measured, to milliseconds."""
    return {name: [[round(a, 3), round(b, 3)] for a, b in spans] for name, spans in watch.spans.items()}


def member_report(member: EnsembleMember, names: Sequence[str]) -> dict[str, Any]:
    """What the report says of a model."""
    card = member.card
    return {
        "checkpoint": Path(member.name).name,
        "weight": member.weight,
        "family": card.network.get("family"),
        "output": card.output,
        "calibrated": card.calibrated,
        "oof_lwlrap": card.oof_score,
        "inference": member.predictor.inference.to_dict(),
        "clips_predicted": len(member.heard),
        "clips_failed": by_source(member.failed_clips, names),
        "network_s": round(member.watch.seconds.get("network", 0.0), 3),
        "spans": rounded_spans(member.watch).get("network", []),
        "failure": member.failure,
    }
