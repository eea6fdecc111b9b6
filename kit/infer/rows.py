'''Collect the scores of a template's rows from every model, and blend them.'''

from collections.abc import Sequence

import numpy as np

from kit.core.errors import KitError, choose, suggest
from kit.infer.blend import BLENDS, blend_scores
from kit.infer.ensemble import UNPOOLED, clip_probabilities
from kit.infer.planner import EnsembleMember
from kit.infer.postprocess import PostprocessConfig, apply_postprocess
from kit.infer.predictor import WindowLogits
from kit.infer.template import RowPlan, Template, split_window
from kit.labels.metrics import METRICS
from kit.models.tagger import TaggerCard


def class_columns(known: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    '''Find the template's classes among a model's; -1 for one that it lacks. Shape: -> (K,) int'''
    place = {name: column for column, name in enumerate(known)}
    columns = np.array([place.get(name, -1) for name in classes], np.int64)
    if (columns < 0).all():
        nearest = suggest(classes[0], known)
        lacks = f"a checkpoint has none of the template's {len(classes)} classes, e.g. {classes[0]!r}"
        raise KitError(f'{lacks} ({nearest}): use the template of its training data.')
    return columns


def pick_columns(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    '''Select a model's columns, NaN for classes that it lacks. Shape: (..., K'), columns (K,) -> (..., K)'''
    return np.where(columns >= 0, values[..., columns], np.nan)


def average_known(values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    '''Average models' values of each class over the models that know it; the mean of all where none does.

    Shape:  m of (K,), NaN where unknown; weights (m,) -> (K,)
    '''
    mean = np.ma.average(np.ma.masked_invalid(np.stack(values)), axis=0, weights=weights)
    return np.ma.filled(mean, mean.mean())


def common_classes(cards: Sequence[TaggerCard]) -> tuple[str, ...]:
    '''The models' classes.'''
    if any(set(card.classes) != set(cards[0].classes) for card in cards):
        raise KitError("the checkpoints' classes differ: give a template.")
    return cards[0].classes


def blend_priors(cards: Sequence[TaggerCard], weights: Sequence[float], classes: Sequence[str]) -> np.ndarray:
    '''Average the models' prevalences: the score of a row, or of a class, without any prediction.'''
    values = [pick_columns(np.array(card.prevalences), class_columns(card.classes, classes)) for card in cards]
    return average_known(values, weights)


def windows_of_row(output: WindowLogits, frames_per_s: float, begin_s: float, end_s: float) -> list[int]:
    '''Choose the windows inside a row's time, else those with their centre in it, else the nearest one.

    Where these leave a part of the row out, the next window, across the row's border, is chosen too.
    '''
    slack_s = 1.5 / frames_per_s
    times_s = np.array(output.spans) / frames_per_s
    centres_s = times_s.mean(axis=1)
    inside = (begin_s - slack_s < times_s[:, 0]) & (times_s[:, 1] < end_s + slack_s)
    if not inside.any():
        inside = (begin_s <= centres_s) & (centres_s < end_s)
    if not inside.any():
        inside[np.abs(centres_s - (begin_s + end_s) / 2).argmin()] = True
    first, last = np.flatnonzero(inside)[[0, -1]].tolist()
    if first > 0 and times_s[first, 0] > begin_s + slack_s:
        first -= 1
    if last + 1 < len(times_s) and times_s[last, 1] < end_s - slack_s:
        last += 1
    return list(range(first, last + 1))


def logits_of_stretch(output: WindowLogits | None, stretch: np.ndarray, frames_per_s: float) -> WindowLogits | None:
    '''Select the windows of a stretch of a recording, as for a row of a submission; of a whole clip, all.

    Shape:  stretch (2,), seconds
    '''
    begin_s, end_s = stretch.tolist()
    if output is None or np.isinf(end_s):
        return output
    windows = windows_of_row(output, frames_per_s, begin_s, end_s)
    return WindowLogits(output.logits[windows], tuple(output.spans[window] for window in windows))


class RowScores:
    '''The scores of all rows by every model, filled clip by clip.

    `split_clips` were too long for one input of mode full. `rows_after_end` are windows that begin after the end of
    their file: they keep the prior. `rows_alike` lie within a window of a model as a row of another time does:
    its windows are too long to tell them apart.
    Shape:  scores (R, K) and done (R,) of each model
    '''

    def __init__(
        self,
        template: Template,
        plan: RowPlan,
        members: Sequence[EnsembleMember],
        kind: str = 'mean',
        postprocess: PostprocessConfig | None = None,
    ) -> None:
        shape = (len(template.ids), len(template.classes))
        self.template = template
        self.plan = plan
        self.members = members
        self.kind = kind
        self.postprocess = postprocess or PostprocessConfig()
        self.weights = [member.weight for member in members]
        self.columns = [class_columns(member.card.classes, template.classes) for member in members]
        # Classes that a model does not know have no share of it.
        self.shares = np.stack(self.columns) >= 0
        self.priors = blend_priors([member.card for member in members], self.weights, template.classes)
        self.scores = [np.zeros(shape, np.float32) for _ in members]
        self.done = [np.zeros(len(template.ids), bool) for _ in members]
        self.split_clips: set[int] = set()
        self.rows_after_end: set[int] = set()
        self.rows_alike: set[int] = set()

    def add(self, member: EnsembleMember, clip: int, output: WindowLogits) -> None:
        '''Fill a clip's rows from one model's logits; a clip that cannot be pooled is noted as failed.'''
        number = self.members.index(member)
        if member.predictor.inference.mode == 'full' and len(output.spans) > 1:
            self.split_clips.add(clip)
        rows_within: dict[int, list[int]] = {}
        for row in self.plan.rows_of.get(clip, []):
            logits = output.logits
            end_s = self.plan.ends_s[row]
            if end_s is not None:
                begin_s = end_s - (self.plan.period_s or end_s)
                frames_per_s = member.card.frontend.frames_per_s
                if begin_s > (output.spans[-1][1] - 1.5) / frames_per_s:
                    self.rows_after_end.add(row)
                    continue
                windows = windows_of_row(output, frames_per_s, begin_s, end_s)
                for window in windows:
                    start, end = output.spans[window]
                    if start < begin_s * frames_per_s + 1.5 and end > end_s * frames_per_s - 1.5:
                        rows_within.setdefault(window, []).append(row)
                logits = logits[windows]
            try:
                scores = clip_probabilities(member.tagger, member.predictor.inference, logits)
            except KitError as error:
                member.fail_clip(clip, str(error))
                return
            columns = self.columns[number]
            self.scores[number][row] = np.where(columns >= 0, scores[columns], self.priors)
            self.done[number][row] = True
        for rows in rows_within.values():
            if len({self.plan.ends_s[row] for row in rows}) > 1:
                self.rows_alike.update(rows)

    def usable(self) -> list[np.ndarray]:
        '''The rows of each model that count. Shape: (R,) each

        A metric per class compares rows with each other: there a model that is not finished fills only rows that no
        finished one has.
        '''
        is_per_class = any(METRICS[member.card.metric].is_per_class for member in self.members)
        if not is_per_class or not any(member.finished for member in self.members):
            return self.done
        pairs = list(zip(self.members, self.done, strict=True))
        by_finished = np.any([done for member, done in pairs if member.finished], axis=0)
        return [done if member.finished else done & ~by_finished for member, done in pairs]

    def counts(self) -> dict[str, int]:
        '''Count the rows, and those with predictions of all models, of some, of none.'''
        by_all = np.all(self.done, axis=0)
        by_any = np.any(self.done, axis=0)
        return {
            'rows': len(by_all),
            'rows_all_models': int(by_all.sum()),
            'rows_some_models': int((by_any & ~by_all).sum()),
            'rows_with_prior': int((~by_any).sum()),
        }

    def blend(self) -> np.ndarray:
        '''Blend all models' scores. Shape: -> (R, K)'''
        return blend_scores(self.scores, self.usable(), self.weights, self.priors, self.kind, self.shares)

    def result(self) -> np.ndarray:
        '''Blend all models' scores and postprocess the rows that have any. Shape: -> (R, K)'''
        scores = self.blend()
        done = np.any(self.done, axis=0)
        if self.postprocess == PostprocessConfig() or not done.any():
            return scores
        fitted = [
            pick_columns(fitted_prevalences(member.card), columns)
            for member, columns in zip(self.members, self.columns, strict=True)
        ]
        trained = average_known(fitted, self.weights)
        is_window = np.array([end_s is not None for end_s in self.plan.ends_s])
        windows = np.flatnonzero(done & is_window)
        whole = np.flatnonzero(done & ~is_window)
        if len(windows):
            name_of_file: dict[int | None, str] = {}
            for row in windows:
                name_of_file.setdefault(self.plan.files[row], split_window(self.template.ids[row])[0])
            recordings = [name_of_file[self.plan.files[row]] for row in windows]
            times_s = [self.plan.ends_s[row] for row in windows]
            scores[windows] = apply_postprocess(
                self.postprocess, scores[windows], recordings, times_s, trained, self.template.classes
            )
        if len(whole):
            # Whole files have prevalences of their own, and no neighbours.
            scores[whole] = apply_postprocess(
                self.postprocess, scores[whole], None, None, trained, self.template.classes
            )
        if self.postprocess.top_mean > 0:
            # A window without predictions is a recording of its own: its best mean is its prior itself.
            scores[~done & is_window] **= 1 + self.postprocess.top_power
        return scores


def fitted_prevalences(card: TaggerCard) -> np.ndarray:
    '''The class prevalences that a model's probabilities assume: those of the batches that training drew.

    A ranking model was calibrated on out-of-fold clips, whose prevalences are those of the table.
    '''
    is_drawn = card.output == 'probability' and len(card.train_prevalences) > 0
    return np.array(card.train_prevalences if is_drawn else card.prevalences)


def check_members(members: Sequence[EnsembleMember], kind: str, plan: RowPlan) -> None:
    '''Refuse to average scores that share no scale, and rows that a model cannot locate in time.'''
    blend = choose('blend', kind, BLENDS)
    if len({id(member.tagger.network) for member in members}) < len(members):
        raise KitError('two models share one network, which has the tensors of the last: build one for each model.')
    for member in members:
        if not member.card.is_calibrated:
            if not blend.any_scale:
                raise KitError(
                    f'{member.name} gives rank scores without a calibration, which {kind} cannot blend: run `oof`, '
                    'which fits one, or use --blend rank.'
                )
            if member.predictor.inference.mode != 'full':
                raise KitError(f'{member.name}: {UNPOOLED}')
    trimmed = [member.name for member in members if member.card.frontend.trim_db is not None]
    if trimmed and any(end_s is not None for end_s in plan.ends_s):
        raise KitError(f"{trimmed[0]} trims a clip's ends, so windows are not at the times of rows: leave it out.")
