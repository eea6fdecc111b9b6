"""Models and sources in, what every model says of every clip out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.core.errors import KitError
from kit.core.progress import Stopwatch
from kit.infer.engine import Listener, WindowLogits
from kit.infer.hearing import Hearing
from kit.infer.ledger import Ledger
from kit.models.tagger import Tagger, TaggerCard
from kit.sound.decode import one_line
from kit.sound.frontend import Frontend
from kit.sound.windows import ListeningConfig, pool_windows


@dataclass(eq=False)
class Member:
    """One model of an ensemble at work."""

    name: str
    listener: Listener
    ledger: Ledger = field(default_factory=Ledger)
    weight: float = 1.0
    run: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)
    heard: set[int] = field(default_factory=set)
    failed_clips: dict[int, str] = field(default_factory=dict)
    failure: str | None = None

    def __post_init__(self) -> None:
        self.tagger = self.listener.tagger

    @property
    def card(self) -> TaggerCard:
        """What is known of its tagger."""
        return self.tagger.card

    @property
    def frontend_key(self) -> str:
        """Equal where spectrograms can be shared."""
        return self.card.frontend.digest_text()


def collect_frontends(members: Sequence[Member], device: torch.device) -> dict[str, Frontend]:
    """Each distinct frontend once, on the device."""
    return {m.frontend_key: m.tagger.frontend.to(device) for m in members}


UNPOOLED = (
    "rank scores without a calibration cannot be pooled over windows: run `oof` on the run, which fits one, or "
    "listen in mode full."
)


def listen_through(
    members: Sequence[Member],
    hearing: Hearing,
    take: Callable[[Member, int, WindowLogits], None],
    *,
    stop: Callable[[], bool] = lambda: False,
    before_batches: Callable[[], object] = lambda: None,
    after_burst: Callable[[Member, float], object] = lambda member, seconds: None,
    after_member: Callable[[Member], object] = lambda member: None,
) -> None:
    """Let every model hear every burst, in order; `take` gets each clip's logits.

    A model that fails is noted with its reason, and the others go on. `stop` is asked between batches.
    """
    for position, member in enumerate(members):
        last_user = all(m.frontend_key != member.frontend_key for m in members[position + 1 :])
        for number in range(len(hearing.bursts)):
            if stop():
                return
            try:
                listen_to_burst(member, hearing, number, take, stop, before_batches)
            except Exception as error:
                member.failure = one_line(error)[:500]
                break
            if last_user:
                hearing.drop(number, member.frontend_key)
            after_burst(member, hearing.burst_s(number))
        if last_user:
            hearing.retire(member.frontend_key)
        member.ledger.flush()
        after_member(member)


def listen_to_burst(
    member: Member,
    hearing: Hearing,
    number: int,
    take: Callable[[Member, int, WindowLogits], None],
    stop: Callable[[], bool],
    before_batches: Callable[[], object],
) -> None:
    """A model hears a burst, or its ledger remembers it.

    A burst that is only partly remembered is heard whole, so that a resumed job forms the same batches; clips of
    one content have one answer. A clip of which the network says no finite number is noted as failed.
    """
    sources, digests = hearing.open_burst(number), hearing.digests
    if not all(digests[i] in member.ledger for i in sources):
        sources, specs = hearing.specs(number, member.frontend_key)
        before_batches()
        with member.watch.measure("network"), hearing.watch.measure("network"):
            heard = member.listener.listen(specs, stop)
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


def clip_scores(tagger: Tagger, listening: ListeningConfig, logits: np.ndarray) -> np.ndarray:
    """One score per class from windows' logits: calibrated, as probabilities, pooled.

    Rank scores without a calibration stay as they are, fit for rank blends alone.
    Shape:  logits (W, K) -> (K,)
    Errors: KitError where uncalibrated rank scores would have to be pooled over windows
    """
    if tagger.card.calibrated:
        return pool_windows(tagger.probabilities(torch.from_numpy(logits)), listening).numpy()
    if len(logits) > 1:
        raise KitError(UNPOOLED)
    return np.asarray(logits[0])


def by_source(reasons: Mapping[int, str], names: Sequence[str]) -> dict[str, str]:
    """Reasons by the names of their sources, in order."""
    return {names[i]: reason for i, reason in sorted(reasons.items())}


def rounded_spans(watch: Stopwatch) -> dict[str, list[list[float]]]:
    """When each name was measured, to milliseconds."""
    return {name: [[round(a, 3), round(b, 3)] for a, b in spans] for name, spans in watch.spans.items()}


def member_report(member: Member, names: Sequence[str]) -> dict[str, Any]:
    """What the report says of a model."""
    card = member.card
    return {
        "checkpoint": Path(member.name).name,
        "weight": member.weight,
        "family": card.network.get("family"),
        "score": card.score,
        "calibrated": card.calibrated,
        "oof_lwlrap": card.oof_score,
        "listening": member.listener.listening.to_dict(),
        "clips_heard": len(member.heard),
        "clips_failed": by_source(member.failed_clips, names),
        "network_s": round(member.watch.seconds.get("network", 0.0), 3),
        "spans": rounded_spans(member.watch).get("network", []),
        "failure": member.failure,
    }
