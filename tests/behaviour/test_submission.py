'''The submission as a whole: what it writes, what it reports, what it refuses.'''

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.core.worker import as_arguments
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from kit.models.checkpoint import load_tagger, open_checkpoint, save_tagger
from kit.models.tagger import wrap_network
from tests.behaviour.trained import (
    LoudBands,
    Trained,
    loud_tagger,
    nine_digits,
    noise,
    plain_frontend,
    read_scores,
    write_folder,
    write_template,
    write_wav,
)


def test_without_a_template_the_sorted_files_and_the_checkpoints_classes_are_written(
    trained: Trained, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'deep' / 'er' / 'sub.csv'
    done = submit(trained.all, clips, out, progress=False)
    header, rows = read_scores(out)
    assert header == ['fname', *trained.classes]
    assert list(rows) == sorted(path.name for path in clips.iterdir())
    predictions = predict_clips(trained.all, clips)
    np.testing.assert_allclose(list(rows.values()), predictions.probabilities, rtol=0, atol=1e-6)
    assert done.report == json.loads((tmp_path / 'deep' / 'er' / 'sub.json').read_text())
    assert done.report['state'] == 'finished' and done.report['rows_all_models'] == len(rows)
    assert abs(done.report['audio_s'] - 27.4) < 0.1
    assert [model['clips_predicted'] for model in done.report['models']] == [len(rows)] * 3
    assert '14 rows, 14 predicted by all of 3 models' in str(done)


def test_models_with_their_classes_in_another_order_agree_on_columns(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav'])

    class Backwards(LoudBands):
        def forward(self, spec: Tensor) -> Tensor:
            return super().forward(spec).flip(1)

    turned = loud_tagger(Backwards(3), classes=('c', 'b', 'a'), prevalences=[0.3, 0.2, 0.1])
    together = predict_clips([loud_tagger(), turned], tmp_path / 'in').probabilities
    np.testing.assert_allclose(together, predict_clips(loud_tagger(), tmp_path / 'in').probabilities, atol=1e-6)


def test_an_empty_folder_makes_a_csv_of_priors_and_a_loud_warning(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'in').mkdir()
    template = write_template(tmp_path / 't.csv', ['x.wav', 'y.wav'], trained.classes, '0.9')
    report = submit(trained.all, tmp_path / 'in', tmp_path / 'out.csv', template, progress=False).report
    assert 'NO AUDIO FILES' in capsys.readouterr().out and 'NO AUDIO' in json.dumps(report['notes'])
    _, rows = read_scores(tmp_path / 'out.csv')
    cards = [open_checkpoint(Path(name)).card for name in trained.all]
    prior = nine_digits(np.mean([card.prevalences for card in cards], axis=0))
    assert [row.tolist() for row in rows.values()] == [prior, prior]
    submit(trained.all, tmp_path / 'in', tmp_path / 'none.csv', progress=False)
    assert (tmp_path / 'none.csv').read_text() == ','.join(['fname', *trained.classes]) + '\n'


def test_a_misspelt_class_is_answered_with_the_nearest_of_all_not_of_the_first_few(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    tagger = loud_tagger(LoudBands(30), [*(f'c{k}' for k in range(29)), 'Zipper'], prevalences=[0.1] * 30)
    template = write_template(tmp_path / 't.csv', ['a.wav'], ['Ziper'])
    with pytest.raises(KitError, match="did you mean 'Zipper'"):
        submit(tagger, tmp_path / 'in', tmp_path / 'o.csv', template)


def test_a_template_of_a_header_alone_makes_a_header_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    template = write_template(tmp_path / 't.csv', [], ['b', 'a'])
    report = submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, progress=False).report
    assert (tmp_path / 'out.csv').read_text() == 'fname,b,a\n'
    assert report['files_without_row'] == ['a.wav'] and report['rows'] == 0
    assert not any('NO ROW' in note for note in report['notes'])


def test_rows_without_a_file_and_files_without_a_row_are_reported_and_columns_follow_the_template(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav'])
    write_wav(tmp_path / 'in' / 'sub' / 'c.wav', noise(3000))
    (tmp_path / 'in' / 'notes.txt').write_text('not audio')
    write_wav(tmp_path / 'in' / '.hidden.wav', noise(3000))
    template = write_template(tmp_path / 't.csv', ['gone.wav', 'a.wav', 'sub/c.wav'], ['c', 'a'])
    report = submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, progress=False).report
    assert report['rows_without_file'] == ['gone.wav'] and report['files_without_row'] == ['b.wav']
    assert report['rows_with_prior'] == 1 and report['rows_all_models'] == 2 and report['files'] == 3
    for name in ('gone.wav', 'b.wav'):
        assert any(name in note for note in report['notes'])
    header, rows = read_scores(tmp_path / 'out.csv')
    assert header == ['fname', 'c', 'a'] and rows['gone.wav'].tolist() == nine_digits([0.3, 0.1])
    (expected,) = predict_clips(loud_tagger(), [tmp_path / 'in' / 'a.wav']).probabilities
    np.testing.assert_allclose(rows['a.wav'], expected[[2, 0]], rtol=0, atol=1e-6)


def test_linked_folders_are_read_and_a_link_to_its_own_folder_counts_no_file_twice(tmp_path: Path) -> None:
    write_folder(tmp_path / 'elsewhere', ['a.wav'])
    (tmp_path / 'in').symlink_to(tmp_path / 'elsewhere')
    write_folder(tmp_path / 'third', ['b.wav'])
    (tmp_path / 'in' / 'more').symlink_to(tmp_path / 'third')
    (tmp_path / 'in' / 'again').symlink_to(tmp_path / 'in')
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', progress=False)
    assert list(read_scores(tmp_path / 'out.csv')[1]) == ['a.wav', 'more/b.wav']


def test_file_names_that_are_no_utf8_or_hold_control_characters_are_submitted_byte_for_byte(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav', '\x1eerror\n.wav', '\u202e.wav'])
    write_wav(tmp_path / 'b.wav', noise(3000))
    os.rename(tmp_path / 'b.wav', os.fsencode(tmp_path / 'in') + b'/\xff\xfe.wav')
    template = write_template(tmp_path / 't.csv', ['a.wav'], ['a', 'b', 'c'])
    report = submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, progress=False).report
    assert report['rows_all_models'] == 1 and len(report['files_without_row']) == 3
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', progress=False)
    assert b'\n\xff\xfe.wav,' in (tmp_path / 'out.csv').read_bytes()


@pytest.mark.parametrize('out', ['', '.', '/', 'out.json', 'there', 'file.txt/sub.csv'])
def test_an_output_that_cannot_be_a_csv_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / 'in', ['a.wav'])
    (tmp_path / 'there').mkdir()
    (tmp_path / 'file.txt').write_text('x')
    with pytest.raises(KitError):
        submit(loud_tagger(), 'in', out, progress=False)


def test_a_state_folder_that_cannot_be_written_costs_the_resume_not_the_csv(
    trained: Trained, clips: Path, tmp_path: Path
) -> None:
    (tmp_path / 'out.csv.state').write_text('a file where the folder should be')
    report = submit(trained.mel[0], clips, tmp_path / 'out.csv', progress=False).report
    assert report['rows_all_models'] == 14 and any('state' in note for note in report['notes'])


def test_wrong_inputs_are_refused_before_anything_is_written(trained: Trained, clips: Path, tmp_path: Path) -> None:
    good = write_template(tmp_path / 'good.csv', ['a'], trained.classes)
    alien = write_template(tmp_path / 'alien.csv', ['a'], ['chirp_upp', 'bark'])
    out = tmp_path / 'out.csv'
    cases: list[tuple[dict[str, Any], str]] = [
        ({'audio': tmp_path / 'nowhere'}, 'does not exist'),
        ({'audio': good}, 'is a file, not a folder'),
        ({'template': tmp_path / 'nowhere.csv'}, r'cannot read .*nowhere\.csv'),
        ({'template': alien}, "did you mean 'chirp_up'"),
        ({'checkpoints': []}, 'no checkpoints given'),
        ({'checkpoints': nn.Sequential(*(LoudBands() for _ in range(99)))}, 'wrap_network'),
        ({'checkpoints': [trained.mel[0], LoudBands()]}, 'got a LoudBands as a checkpoint'),
        ({'weights': [1.0, 2.0]}, 'one positive number per model'),
        ({'deadline': -5}, 'a duration is'),
    ]
    for changes, words in cases:
        asked: dict[str, Any] = {'checkpoints': trained.mel[0], 'audio': clips, 'template': good} | changes
        with pytest.raises(KitError, match=words):
            submit(out=out, progress=False, **asked)
        assert not out.exists(), changes


def test_windows_that_are_no_length_or_skip_audio_are_refused(trained: Trained, clips: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({'window_s': -1.0}, 'at least 0.01'),
        ({'window_s': float('nan')}, 'at least 0.01'),
        ({'window_s': float('inf')}, 'window_s'),
        ({'window_s': 1.0, 'hop_s': 2.0}, 'skips audio'),
    ):
        with pytest.raises(KitError, match=words):
            submit(trained.mel[0], clips, tmp_path / 'o.csv', mode='windows', progress=False, **changes)


class Tuned(nn.Module):
    '''Somebody's network, made as networks are: convolutions, a view, a recurrent layer, a linear one.'''

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.gru = nn.GRU(8 * 30, 12, batch_first=True)
        self.out = nn.Linear(12, classes)

    def forward(self, spec: Tensor) -> Tensor:
        x = self.conv(spec).relu()
        x = x.view(x.shape[0], -1, x.shape[-1]).transpose(1, 2)
        return torch.as_tensor(self.out(self.gru(x)[0].amax(dim=1)))


def test_a_wrapped_network_predicts_the_same_from_memory_from_its_file_and_in_a_csv(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav', 'c.wav'])
    frontend = plain_frontend(channels=('log', 'coordinate'))
    tagger = wrap_network(Tuned(), frontend, list('wxyz'), name='tuned')
    networks = {'tuned': Tuned}
    save_tagger(tmp_path / 'own.pt', tagger)
    expected = predict_clips(tagger, tmp_path / 'in')
    assert expected.classes == tuple('wxyz') and np.ptp(expected.probabilities, axis=0).max() > 1e-3
    loaded = load_tagger(tmp_path / 'own.pt', networks=networks)
    for checkpoint, builders in ((loaded, None), (tmp_path / 'own.pt', networks)):
        predictions = predict_clips(checkpoint, tmp_path / 'in', networks=builders)
        assert np.array_equal(predictions.probabilities, expected.probabilities)
        submit(checkpoint, tmp_path / 'in', tmp_path / 'out.csv', networks=builders, progress=False)
        rows = list(read_scores(tmp_path / 'out.csv')[1].values())
        np.testing.assert_allclose(rows, expected.probabilities, rtol=0, atol=1e-7)


def test_a_network_lent_to_the_kit_keeps_its_mode_and_its_weights(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    network = nn.Sequential(nn.Flatten(2), nn.AdaptiveMaxPool1d(3), nn.Flatten(), nn.Dropout(0.5))
    network.train()
    network[3].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = (predict_clips(loud_tagger(network), tmp_path / 'in').probabilities for _ in range(2))
    assert np.array_equal(first, second)
    assert network.training and not network[3].training, 'a frozen part of it trains again'
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_other_inference_settings_than_the_checkpoints_are_reported(
    trained: Trained, clips: Path, tmp_path: Path
) -> None:
    windows = InferenceConfig(mode='windows', window_s=1.0, hop_s=0.5)
    options: dict[str, Any] = {'mode': 'windows', 'window_s': 1.0, 'hop_s': 0.5, 'progress': False}
    report = submit(trained.mel[0], clips, tmp_path / 'out.csv', **options).report
    assert any('other inference settings' in note and 'fold_0.pt' in note for note in report['notes'])
    assert report['models'][0]['inference'] == windows.to_dict()
    _, rows = read_scores(tmp_path / 'out.csv')
    predictions = predict_clips(trained.mel[0], clips, inference=windows).probabilities
    np.testing.assert_allclose(list(rows.values()), predictions, rtol=0, atol=1e-6)


def test_options_that_are_arrays_reach_the_worker_as_lists_do() -> None:
    assert as_arguments({'weights': np.array([1.0, 2.0])}) == as_arguments({'weights': [1.0, 2.0]})


def test_rows_in_time_are_refused_from_a_frontend_that_trims(tmp_path: Path) -> None:
    write_wav(tmp_path / 'in' / 's.wav', noise(80000))
    rows = write_template(tmp_path / 't.csv', ['s_5', 's_10'], ['a', 'b', 'c'])
    whole = write_template(tmp_path / 'whole.csv', ['s'], ['a', 'b', 'c'])
    trimming = wrap_network(LoudBands(3), plain_frontend(trim_db=40.0), ['a', 'b', 'c'])
    submit(trimming, tmp_path / 'in', tmp_path / 'out.csv', whole, progress=False)
    with pytest.raises(KitError, match=r'trims a clip.*are not at the times'):
        submit(trimming, tmp_path / 'in', tmp_path / 'out.csv', rows, progress=False)


def test_a_blend_of_the_whole_set_is_reported_as_one(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav'])
    notes = []
    for blend in ('column_rank', 'rank'):
        done = submit(loud_tagger(), tmp_path / 'in', tmp_path / 'o.csv', blend=blend, progress=False)
        notes.append(done.report['notes'])
    assert any('depend on the other rows' in note for note in notes[0])
    assert not any('other rows' in note for note in notes[1])
