'''Law 6: a file that cannot be read is a reason in the report and gets the prior; the others are not affected.'''

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kit.audio.decode import DECODERS, Decoder, Sound, Undecodable, decode_file
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from kit.models.checkpoint import open_checkpoint, save_tagger
from tests.behaviour.trained import (
    RATE,
    LoudBands,
    Trained,
    loud_tagger,
    nine_digits,
    noise,
    read_scores,
    write_folder,
    write_template,
    write_wav,
)


def make_bad(folder: Path) -> dict[str, str]:
    '''Every kind of file that cannot be read: its name, and a word of the expected reason.'''
    flac = next(path for path in sorted(folder.iterdir()) if path.suffix == '.flac').read_bytes()
    contents = {
        'empty.wav': b'',
        'text.mp3': b'this is no sound at all, ' * 400,
        'random.ogg': np.random.default_rng(0).bytes(20_000),
        'headless.flac': b'\0' * 2000 + flac[2000:],
        'cut_header.wav': b'RIFF\x24\x00\x00\x00WAVEfmt ',
        'page.wav': b'<!DOCTYPE html><html>404</html>',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_wav(folder / 'no_samples.wav', np.zeros(0, np.float32))
    write_wav(folder / 'huge.wav', np.full(4000, 1e30, np.float32))
    for name, value in (('nan.wav', np.nan), ('infinite.wav', np.inf)):
        wave = noise(4000)
        wave[1234:] = value
        write_wav(folder / name, wave)
    write_wav(folder / 'odd_rate.wav', noise(100), rate=7)
    os.mkfifo(folder / 'pipe.wav')
    (folder / 'broken_link.wav').symlink_to(folder / 'nowhere.wav')
    (folder / 'device.wav').symlink_to('/dev/zero')
    (folder / 'a_folder.wav').mkdir()
    reasons = dict.fromkeys(contents, '')
    reasons |= {'no_samples.wav': 'no samples', 'huge.wav': 'no sound', 'empty.wav': '0 bytes'}
    reasons |= {'nan.wav': 'not finite', 'infinite.wav': 'not finite', 'odd_rate.wav': '7 Hz'}
    reasons |= {'pipe.wav': 'not a regular file', 'broken_link.wav': 'cannot be opened'}
    reasons |= {'device.wav': 'not a regular file'}
    if os.geteuid() != 0:
        write_wav(folder / 'secret.wav', noise(4000)).chmod(0)
        reasons['secret.wav'] = 'cannot be'
    return reasons


def test_files_that_cannot_be_read_get_the_prior_exactly_and_the_others_are_not_affected(
    trained: Trained, clips: Path, tmp_path: Path
) -> None:
    good = sorted(path.name for path in clips.iterdir())
    shutil.copytree(clips, tmp_path / 'in')
    bad = make_bad(tmp_path / 'in')
    names = sorted([*good, *bad, 'a_folder.wav', 'absent.wav'])
    template = write_template(tmp_path / 'template.csv', names, trained.classes)
    weights = [1.0, 2.0, 0.5]
    out = tmp_path / 'out' / 'sub.csv'
    report = submit(trained.all, tmp_path / 'in', out, template, weights=weights, progress=False).report
    _, rows = read_scores(out)
    cards = [open_checkpoint(Path(name)).card for name in trained.all]
    columns = [[card.classes.index(c) for c in trained.classes] for card in cards]
    priors = [np.array(card.prevalences)[c] for card, c in zip(cards, columns, strict=True)]
    prior = nine_digits(sum(w * p for w, p in zip(weights, priors, strict=True)) / sum(weights))
    for name in [*bad, 'a_folder.wav', 'absent.wav']:
        assert rows[name].tolist() == prior, name
    alone = predict_clips(trained.all, clips, weights=weights)
    columns_of = [alone.classes.index(c) for c in trained.classes]
    for name, wanted in zip(alone.names, alone.probabilities[:, columns_of], strict=True):
        np.testing.assert_allclose(rows[name], wanted, rtol=0, atol=1e-5)
        assert np.abs(rows[name] - prior).max() > 1e-3
    assert set(report['files_failed']) == set(bad)
    for name, word in bad.items():
        assert word in report['files_failed'][name] and report['files_failed'][name], name
        assert '\n' not in report['files_failed'][name]
    assert report['rows_without_file'] == ['a_folder.wav', 'absent.wav']
    assert report['rows_with_prior'] == len(bad) + 2 and report['rows_all_models'] == len(good)
    assert json.loads((tmp_path / 'out' / 'sub.json').read_text()) == report


def test_a_folder_of_nothing_but_bad_files_makes_a_csv_of_priors_and_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['x.flac'])
    bad = make_bad(tmp_path / 'in')
    (tmp_path / 'in' / 'x.flac').unlink()
    with pytest.raises(KitError, match=r'no file could be read, .* holds priors'):
        submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', progress=False)
    _, rows = read_scores(tmp_path / 'out.csv')
    assert set(rows) == set(bad)
    assert all(row.tolist() == nine_digits([0.1, 0.2, 0.3]) for row in rows.values())
    done = submit(
        loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', deadline='1m', started_at=time.time(), progress=False
    )
    assert done.report['rows_all_models'] == 0 and done.report['state'].startswith('nothing was predicted')
    assert 'NOTHING WAS PREDICTED' in str(done)


def test_in_memory_clips_fail_one_by_one_as_files_do() -> None:
    good = Sound(noise(4000), RATE)
    bad = [
        Sound(np.zeros(0, np.float32), RATE),
        Sound(np.full(4000, np.nan, np.float32), RATE),
        Sound(np.full(4000, 1e30, np.float32), RATE),
        Sound(noise(100), 7),
    ]
    alone = predict_clips(loud_tagger(), [good]).probabilities[0]
    predictions = predict_clips(loud_tagger(), [good, *bad])
    assert set(predictions.failures) == {'clip 1', 'clip 2', 'clip 3', 'clip 4'}
    np.testing.assert_allclose(predictions.probabilities[0], alone, atol=1e-6)
    np.testing.assert_allclose(predictions.probabilities[1:], [[0.1, 0.2, 0.3]] * 4, atol=1e-7)


def broken(path: Path) -> Any:
    '''A decoder that gives no sound.'''
    return None


def leaving(path: Path) -> Any:
    '''A decoder that ends its thread.'''
    raise SystemExit(3)


@pytest.mark.parametrize('read', [lambda path: 1 / 0, broken, leaving])
def test_a_decoder_that_breaks_its_promise_is_a_reason(tmp_path: Path, read: Any) -> None:
    path = write_wav(tmp_path / 'a.wav', noise(400))
    assert isinstance(decode_file(path, [Decoder('odd', read, lambda _: 1.0)]), Undecodable)


def test_the_next_decoder_is_tried_where_the_first_cannot(tmp_path: Path) -> None:
    path = write_wav(tmp_path / 'a.wav', noise(400))
    first = Decoder('odd', lambda _: 1 / 0, lambda _: 1 / 0)
    assert isinstance(decode_file(path, [first, *DECODERS]), Sound)


class Unstable(LoudBands):
    '''A network that returns wrong logits of loud clips, or raises at them.'''

    def __init__(self, react: Any) -> None:
        super().__init__(3)
        self.react = react

    def forward(self, spec: Tensor) -> Tensor:
        logits = super().forward(spec)
        loud = spec.amax(dim=(1, 2, 3)) > -0.7
        return self.react(logits, loud) if loud.any() else logits


def not_finite(value: float) -> Any:
    '''Logits of loud clips become NaN or infinite.'''
    return lambda logits, loud: torch.where(loud[:, None], torch.full_like(logits, value), logits)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_clip_without_finite_logits_gets_the_prior_and_a_reason(tmp_path: Path, value: float) -> None:
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav'], samples=3000)
    write_wav(tmp_path / 'in' / 'loud.wav', noise(3000, level=0.9))
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'usual.csv', progress=False)
    _, usual = read_scores(tmp_path / 'usual.csv')
    tagger = loud_tagger(Unstable(not_finite(value)))
    report = submit(tagger, tmp_path / 'in', tmp_path / 'out.csv', progress=False).report
    _, rows = read_scores(tmp_path / 'out.csv')
    assert 'loud.wav' in json.dumps(report) and report['rows_with_prior'] == 1
    assert rows['loud.wav'].tolist() == nine_digits([0.1, 0.2, 0.3])
    for name in ('a.wav', 'b.wav'):
        np.testing.assert_allclose(rows[name], usual[name], atol=1e-6)


def test_a_clip_without_finite_logits_is_a_failure_of_predict_clips_too(tmp_path: Path) -> None:
    sounds = [Sound(noise(3000), RATE), Sound(noise(3000, level=0.9), RATE)]
    both = [loud_tagger(Unstable(not_finite(float('nan')))), loud_tagger()]
    predictions = predict_clips(both, sounds)
    assert list(predictions.failures) == ['clip 1'] and 'tagger 0: the network' in predictions.failures['clip 1']


def raising(error: BaseException) -> Any:
    '''Raise an error at loud clips.'''

    def react(logits: Tensor, loud: Tensor) -> Tensor:
        raise error

    return react


ERRORS = [
    RuntimeError('boom'), KeyError('boom'), MemoryError('boom'), torch.OutOfMemoryError('boom')
]  # fmt: skip


@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
def test_a_network_that_raises_does_not_stop_the_others(tmp_path: Path, error: BaseException) -> None:
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav'])
    write_wav(tmp_path / 'in' / 'loud.wav', noise(3000, level=0.9))
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'usual.csv', progress=False)
    both = [loud_tagger(Unstable(raising(error))), loud_tagger()]
    report = submit(both, tmp_path / 'in', tmp_path / 'out.csv', progress=False).report
    assert [bool(model['failure']) for model in report['models']] == [True, False]
    _, usual = read_scores(tmp_path / 'usual.csv')
    _, rows = read_scores(tmp_path / 'out.csv')
    for name, wanted in usual.items():
        np.testing.assert_allclose(rows[name], wanted, atol=1e-6)


class Shaped(nn.Module):
    '''A network whose answer has the wrong shape or type.'''

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, spec: Tensor) -> Any:
        return self.answer(len(spec))


WRONG = {
    'a class too many': lambda b: torch.zeros(b, 4),
    'frames': lambda b: torch.zeros(b, 3, 10),
    'a clip too many': lambda b: torch.zeros(b + 1, 3),
    'a tuple': lambda b: (torch.zeros(b, 3), None),
    'nothing': lambda b: None,
}


@pytest.mark.parametrize('wrong', WRONG)
def test_a_network_whose_output_is_not_clips_by_classes_is_refused_with_the_shape(tmp_path: Path, wrong: str) -> None:
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav'])
    with pytest.raises(KitError, match=r'\(B, K\)|3 classes'):
        submit(loud_tagger(Shaped(WRONG[wrong])), tmp_path / 'in', tmp_path / 'out.csv', progress=False)
    _, rows = read_scores(tmp_path / 'out.csv')
    assert all(row.tolist() == nine_digits([0.1, 0.2, 0.3]) for row in rows.values())


def test_the_clips_that_a_model_predicted_before_it_failed_count(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', [f'{i:02d}.wav' for i in range(24)], samples=2000)
    write_wav(tmp_path / 'in' / 'loud.wav', noise(30000, level=0.9))
    both = [loud_tagger(Unstable(raising(RuntimeError('boom')))), loud_tagger(classes=('c', 'b', 'a'))]
    report = submit(both, tmp_path / 'in', tmp_path / 'out.csv', progress=False).report
    failed = next(model for model in report['models'] if model['failure'])
    assert failed['clips_predicted'] == 24 and report['rows_all_models'] == 24
    assert any('FAILED after 24 clips: boom' in note for note in report['notes'])


class Hungry(LoudBands):
    '''A network for which the device has memory for so many frames at once, and no more.'''

    def __init__(self, frames: int) -> None:
        super().__init__(3)
        self.frames = frames
        self.sizes: list[int] = []

    def forward(self, spec: Tensor) -> Tensor:
        if spec.shape[0] * spec.shape[-1] > self.frames:
            raise torch.OutOfMemoryError('out of memory')
        self.sizes.append(spec.shape[0] * spec.shape[-1])
        return super().forward(spec)


def test_a_batch_too_large_for_the_device_is_halved_to_what_fits_and_no_further(tmp_path: Path) -> None:
    sounds = [Sound(noise(7999, seed=i, level=0.01 * (1 + i % 24)), RATE) for i in range(240)]
    wanted = predict_clips(loud_tagger(), sounds).probabilities
    hungry = Hungry(frames=200)
    found = predict_clips(loud_tagger(hungry), sounds, batch_frames=32000).probabilities
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert min(hungry.sizes[-24:]) >= 100, 'batches shrink for ever'


def test_a_clip_without_a_finite_answer_is_noted_with_its_reason(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav', 'c.wav'])

    calls = iter(range(9))

    def spoil(spec: Tensor) -> None:
        if next(calls) == 1:
            spec.fill_(torch.nan)

    tagger = loud_tagger(LoudBands(before=spoil))
    report = submit(tagger, tmp_path / 'in', tmp_path / 'out.csv', batch_frames=1, progress=False).report
    assert 0 < report['rows_with_prior'] < 3
    assert any('has no prediction for' in note and 'no finite number' in note for note in report['notes'])


def test_predictions_of_a_network_whose_code_has_changed_are_not_used_again(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav'])
    save_tagger(tmp_path / 'own.pt', loud_tagger(name='own'))

    class Louder(LoudBands):
        def forward(self, spec: Tensor) -> Tensor:
            return super().forward(spec) + 1.0

    words = [tmp_path / 'own.pt', tmp_path / 'in']
    first = submit(*words, tmp_path / 'out.csv', networks={'own': LoudBands}, progress=False)
    rows = read_scores(first.csv)[1]
    second = submit(*words, tmp_path / 'out.csv', networks={'own': Louder}, progress=False)
    fresh = submit(*words, tmp_path / 'fresh.csv', networks={'own': Louder}, progress=False)
    assert second.csv.read_bytes() == fresh.csv.read_bytes() != rows
    assert not np.array_equal(read_scores(second.csv)[1]['a.wav'], rows['a.wav'])
