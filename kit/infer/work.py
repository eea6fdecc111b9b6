"""Options of a submission in, the work done in this process, a CSV that grows better and a report out."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.core.files import file_digest, text_digest, write_json
from kit.core.progress import Stopwatch, advance, progress_bar
from kit.core.runtime import pick_device, tune_process
from kit.core.supervise import am_worker
from kit.core.version import VERSION
from kit.infer.checkpoint import NetworkBuilder, find_checkpoints, load_tagger, read_checkpoint
from kit.infer.engine import Listener, WindowLogits
from kit.infer.hearing import Hearing
from kit.infer.ledger import Ledger
from kit.infer.rows import RowScores, check_blend, check_weights, class_columns, common_classes
from kit.infer.session import Member, collect_frontends, listen_through, member_report
from kit.infer.template import RowPlan, Template, plan_rows, read_template, write_submission
from kit.models.tagger import Tagger, TaggerCard
from kit.sound.decode import DECODERS, Decoder, list_audio
from kit.sound.windows import ListeningConfig


@dataclass(frozen=True)
class SubmitOptions:
    """What a submission was asked to do; the words are those of `submit`."""

    checkpoints: Sequence[str | Path | Tagger]
    audio: Path
    out: Path
    template: Path | None = None
    blend: str = "mean"
    weights: Sequence[float] | None = None
    mode: str | None = None
    window_s: float | None = None
    hop_s: float | None = None
    pool: str | None = None
    device: str | None = None
    threads: int | None = None
    batch_frames: int | None = None
    precision: str = "float32"
    progress: bool = True
    networks: Mapping[str, NetworkBuilder] | None = None
    decoders: Sequence[Decoder] = DECODERS

    @property
    def in_memory(self) -> bool:
        """Whether it names things that only this process holds, and no child could be given."""
        return (
            bool(self.networks)
            or self.decoders is not DECODERS
            or any(isinstance(c, Tagger) for c in self.checkpoints)
        )


def report_path(out: Path) -> Path:
    """Where the report of a submission lies: submission.csv has submission.json beside it."""
    return out.with_suffix(".json")


class Pace:
    """Tells when to stop: what is left must hold one more step and the writing of the CSV.

    Units: seconds
    """

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.longest_s = self.write_s = 0.0
        self.last = deadline.now()
        self.stopped = False

    def begin(self) -> None:
        """Start counting steps: what came before was no step."""
        self.last = self.deadline.now()

    def __call__(self) -> bool:
        now = self.deadline.now()
        self.longest_s, self.last = max(self.longest_s, now - self.last), now
        self.stopped = self.stopped or self.deadline.left_s() < self.longest_s + 2 * self.write_s + 0.2
        return self.stopped


class SubmissionWork:
    """One submission on its way: what it reads, what it has heard, and the CSV it keeps whole."""

    def __init__(
        self, options: SubmitOptions, deadline: Deadline, silent_after: Deadline | None = None
    ) -> None:
        self.options, self.pace = options, Pace(deadline)
        self.silent_after = Deadline()
        self.quiet = am_worker()
        self.watch = Stopwatch()
        self.notes: list[str] = []
        self.in_pieces: set[str] = set()
        self.began = time.time()
        self.files = list_audio(options.audio)
        self.names = [path.relative_to(options.audio).as_posix() for path in self.files]
        self.cards = self.read_cards()
        self.weights = check_weights(options.weights, len(self.cards))
        self.template, self.plan = self.read_rows()
        columns = [class_columns(card, self.template.classes, name) for name, card in self.cards]
        known = [np.array(card.prevalences)[c] for (_, card), c in zip(self.cards, columns, strict=True)]
        priors = np.average(np.array(known), axis=0, weights=self.weights)
        self.write(np.tile(priors, (len(self.template.ids), 1)))
        self.quiet = False
        self.silent_after = silent_after or Deadline()

    def read_cards(self) -> list[tuple[str, TaggerCard]]:
        """The card of every model, by name, before any network is built."""
        cards: list[tuple[str, TaggerCard]] = []
        for item in self.options.checkpoints:
            if isinstance(item, Tagger):
                cards.append((f"tagger {len(cards)}", item.card))
            else:
                cards += [(str(path), read_checkpoint(path)[0]) for path in find_checkpoints([item])]
        if not cards:
            raise KitError("no checkpoints given: e.g. --checkpoints 'run/fold_*.pt'.")
        return cards

    def read_rows(self) -> tuple[Template, RowPlan]:
        """The template's rows and the file of each; without a template, the files and the checkpoints' classes."""
        if self.options.template is None:
            template = Template("fname", tuple(self.names), common_classes([card for _, card in self.cards]))
            return template, plan_rows(self.names, self.names)
        template = read_template(self.options.template)
        plan = plan_rows(template.ids, self.names)
        unheard = [name for name, file in zip(template.ids, plan.files, strict=True) if file is None]
        if unheard:
            self.note(
                f"{len(unheard)} of {len(template.ids)} rows have no file and get the prior, e.g. {unheard[0]!r}"
            )
        if plan.idle_files:
            first = self.names[plan.idle_files[0]]
            self.note(
                f"{len(plan.idle_files)} files have no row in the template and are left out, e.g. {first!r}"
            )
        return template, plan

    def note(self, text: str) -> None:
        """Something the report says, and the screen too."""
        self.notes.append(text)
        if not self.quiet:
            print(f"note: {text}", flush=True)

    def listening_of(self, card: TaggerCard, name: str) -> ListeningConfig:
        """How a model will listen: as its checkpoint says, but for what the call overrides."""
        asked = {key: getattr(self.options, key) for key in ("mode", "window_s", "hop_s", "pool")}
        changes = {key: value for key, value in asked.items() if value is not None}
        if self.plan.form == "window" and "mode" not in changes and card.listening.mode == "full":
            period = float(self.plan.period_s or card.listening.window_s)
            changes = {"mode": "windows", "window_s": period, "hop_s": period} | changes
        listening = dataclasses.replace(card.listening, **changes)
        if listening != card.listening:
            self.note(f"{Path(name).name} listens in another way than it was scored out of fold: {changes}")
        return listening

    def members(self, device: torch.device) -> list[Member]:
        """All models on the device, the cheapest first, equally cheap ones by their score out of fold."""
        taggers = {
            f"tagger {i}": item for i, item in enumerate(self.options.checkpoints) if isinstance(item, Tagger)
        }
        members = []
        folder = self.options.out.with_name(self.options.out.name + ".state")
        for (name, card), weight in zip(self.cards, self.weights, strict=True):
            listening, path = self.listening_of(card, name), None
            if name not in taggers:
                key = text_digest(
                    file_digest(Path(name)), listening.digest_text(), self.options.precision, device.type
                )
                path = folder / f"{Path(name).stem}_{key[:16]}.npz"
            tagger = taggers.get(name) or load_tagger(name, self.options.networks)
            listener = Listener(tagger, device, self.options.batch_frames, self.options.precision, listening)
            members.append(Member(name, listener, Ledger(path, self.pace.deadline.now), weight))
        check_blend(members, self.options.blend)
        return sorted(members, key=lambda m: (m.tagger.card.cost or 0.0, -(m.tagger.card.oof_score or 0.0)))

    def write(self, scores: np.ndarray) -> None:
        """Write the CSV, whole, and learn how long that takes; not when the caller has been answered."""
        if self.silent_after.left_s() <= 0:
            return
        began = self.pace.deadline.now()
        with self.watch.measure("write"):
            write_submission(self.options.out, self.template, scores)
        self.pace.write_s = self.written_at = self.pace.deadline.now()
        self.pace.write_s -= began

    def run(self) -> dict[str, Any]:
        """Hear everything that the clock allows; the report, which is also written."""
        device, remark = pick_device(self.options.device)
        if remark:
            self.note(remark)
        if not self.files:
            self.note(f"NO AUDIO FILES in {self.options.audio}: the CSV holds priors only")
        with self.watch.measure("models"):
            members = self.members(device)
        rows = RowScores(self.template, self.plan, members)
        used = [i for i in range(len(self.files)) if i in rows.rows_of]
        hearing = Hearing(
            [self.files[i] for i in used],
            collect_frontends(members, device),
            device,
            threads=self.options.threads,
            decoders=self.options.decoders,
            known=lambda digest: all(digest in m.ledger for m in members),
            patience_s=max(1.0, min(60.0, self.pace.deadline.left_s() / 4)),
            watch=self.watch,
        )
        total = len(members) * sum(d or 0.0 for d in hearing.durations_s)
        bar = progress_bar(total, "submit", "s of audio", self.options.progress)

        def take(member: Member, source: int, said: WindowLogits) -> None:
            rows.take(member, used[source], said)
            if member.listener.listening.mode == "full" and len(said.spans) > 1:
                self.in_pieces.add(self.names[used[source]])

        def after_burst(member: Member, seconds: float) -> None:
            advance(bar, seconds)
            if self.pace.deadline.now() - self.written_at > max(5.0, 20 * self.pace.write_s):
                self.write(rows.blend(self.options.blend))

        def after_member(member: Member) -> None:
            self.write(rows.blend(self.options.blend))
            self.report(members, hearing, used, rows, finished=False)

        self.pace.begin()
        listen_through(
            members, hearing, take, stop=self.pace, after_burst=after_burst, after_member=after_member
        )
        bar.close()
        hearing.close()
        for member in members:
            member.ledger.flush()
        if self.in_pieces:
            self.note(
                f"{len(self.in_pieces)} clips are longer than max_frames and were heard in overlapping pieces"
            )
        self.write(rows.blend(self.options.blend))
        return self.report(members, hearing, used, rows, finished=True)

    def report(
        self,
        members: Sequence[Member],
        hearing: Hearing,
        used: Sequence[int],
        rows: RowScores,
        finished: bool,
    ) -> dict[str, Any]:
        """Write, and return, what was heard, what failed and why, and where the time went."""
        failed = {self.names[used[i]]: reason for i, reason in sorted(hearing.failures.items())}
        weights = np.array([m.weight for m in members])
        got = (np.array(rows.done) * weights[:, None]).sum(axis=0) / weights.sum()
        value = {
            "kit": VERSION,
            "csv": str(self.options.out),
            "state": "finished"
            if finished and not self.pace.stopped
            else "stopped by the deadline"
            if finished
            else "at work",
            "rows": len(self.template.ids),
            "rows_heard_by_all": int((got > 0.999999).sum()),
            "rows_heard_by_some": int(((got > 0) & (got <= 0.999999)).sum()),
            "rows_with_prior": int((got == 0).sum()),
            "id_form": self.plan.form,
            "files": len(self.files),
            "files_failed": failed,
            "files_heard_in_pieces": sorted(self.in_pieces),
            "files_without_row": [self.names[i] for i in self.plan.idle_files],
            "rows_without_file": [
                n for n, f in zip(self.template.ids, self.plan.files, strict=True) if f is None
            ],
            "audio_s": round(sum(d or 0.0 for d in hearing.durations_s), 3),
            "device": str(hearing.device),
            "blend": self.options.blend,
            "models": [member_report(m) for m in members],
            "seconds": {name: round(s, 3) for name, s in self.watch.seconds.items()},
            "seconds_total": round(time.time() - self.began, 3),
            "notes": self.notes,
        }
        if self.silent_after.left_s() > 0:
            write_json(report_path(self.options.out), value)
        return value


def do_submission(work: SubmissionWork) -> dict[str, Any]:
    """Do a submission in this process; its report. Errors: KitError, also where every model failed"""
    tune_process()
    report = work.run()
    failures = [model["failure"] for model in report["models"] if model["failure"]]
    if failures and len(failures) == len(report["models"]):
        raise KitError(f"every model failed, the CSV {work.options.out} holds priors: {failures[0]}")
    for model in report["models"]:
        if model["failure"]:
            print(
                f"note: {model['checkpoint']} failed and has no part in the CSV: {model['failure']}",
                flush=True,
            )
    return report
