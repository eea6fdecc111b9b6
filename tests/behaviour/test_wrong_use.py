'''Mistakes that new users make get one sentence with the cure, and never a wrong answer without a word.'''

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kit.audio.decode import Sound
from kit.core.errors import KitError
from kit.doctor import run_doctor
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from kit.infer.template import plan_rows
from kit.models.checkpoint import content_digest, load_tagger, save_tagger
from kit.models.tagger import Tagger, TaggerCard, build_tagger, wrap_ensemble, wrap_network
from kit.train.recipes import find_recipe
from kit.train.run import train_run
from tests.behaviour.trained import (
    LoudBands,
    loud_tagger,
    noise,
    plain_frontend,
    read_scores,
    write_folder,
    write_template,
    write_wav,
)

CLASSES = ['bark', 'meow', 'rain']
PYRAMID = {'family': 'max-pyramid', 'blocks': 2, 'width': 4}


class Sigmoid(LoudBands):
    '''A network that returns probabilities.'''

    def forward(self, spec: Tensor) -> Tensor:
        return super().forward(spec).sigmoid()


WRONG_WRAPS = {
    'a text as classes': (LoudBands(), 'bark', r"pass \['bark'\]"),
    'a builder as network': (LoudBands, CLASSES, r'call it, wrap_network\(build\(\), ...\)'),
    'a state dict alone': (LoudBands().state_dict(), CLASSES, 'max-pyramid.*load the state dict into your module'),
}


@pytest.mark.parametrize('case', WRONG_WRAPS)
def test_a_network_in_the_wrong_form_is_refused_with_the_right_one(case: str) -> None:
    network, classes, words = WRONG_WRAPS[case]
    with pytest.raises(KitError, match=words):
        wrap_network(network, plain_frontend(), classes)  # type: ignore[arg-type]


def failing_builder() -> nn.Module:
    '''A builder that raises.'''
    raise ValueError('no weights here')


WRONG_BUILDERS = {
    'a module': (LoudBands(), 'pass the function that builds it, build, not build'),
    'what raises': (failing_builder, 'failed: no weights here'),
    'what returns no module': (dict, 'returned a dict, not a torch.nn.Module'),
}


@pytest.mark.parametrize('case', WRONG_BUILDERS)
def test_a_wrong_builder_is_named_with_its_cure(case: str, tmp_path: Path) -> None:
    builder, words = WRONG_BUILDERS[case]
    save_tagger(tmp_path / 'own.pt', loud_tagger(name='mine'))
    with pytest.raises(KitError, match=words):
        load_tagger(tmp_path / 'own.pt', networks={'mine': builder})  # type: ignore[dict-item]


def test_saving_takes_a_path_and_a_tagger(tmp_path: Path) -> None:
    for wrong in ((loud_tagger(), 'x.pt'), (tmp_path / 'x.pt', LoudBands())):
        with pytest.raises(KitError, match='make a tagger with wrap_network'):
            save_tagger(*wrong)
    assert not (tmp_path / 'x.pt').exists()


def scaled(scale: float) -> nn.Module:
    '''A network that another scale has trained.'''
    network = LoudBands()
    with torch.no_grad():
        network.scale.fill_(scale)
    return network.eval()


def test_an_ensemble_of_own_networks_is_one_call_from_state_dicts_files_and_patterns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [scaled(scale).state_dict() for scale in (0.1, 0.2, 0.3, 0.4)]
    torch.save(states[0], tmp_path / 'fold_0.pth')
    torch.save({'epoch': 3, 'state_dict': states[1]}, tmp_path / 'fold_1.pth', _use_new_zipfile_serialization=False)
    torch.save({'model_state_dict': states[2], 'model': {}}, tmp_path / 'last.ckpt')
    items = [tmp_path / 'fold_*.pth', str(tmp_path / 'last.ckpt'), {'model': states[3]}]
    taggers = wrap_ensemble(LoudBands, items, plain_frontend(), CLASSES, prevalences=(0.1, 0.2, 0.3))
    assert [tagger.network.scale.item() for tagger in taggers] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert all(tagger.card.prevalences == (0.1, 0.2, 0.3) and not tagger.training for tagger in taggers)
    assert capsys.readouterr().out == ''
    folder = write_folder(tmp_path / 'in', ['a.wav', 'b.wav'])
    submit(taggers, folder, tmp_path / 'own.csv', progress=False)
    one_by_one = [wrap_network(tagger.network, plain_frontend(), CLASSES) for tagger in taggers]
    submit(one_by_one, folder, tmp_path / 'one.csv', progress=False)
    for name, row in read_scores(tmp_path / 'own.csv')[1].items():
        assert np.allclose(row, read_scores(tmp_path / 'one.csv')[1][name])


def test_prefixes_of_wrappers_are_stripped_from_an_ensemble_and_that_is_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = [{f'module.{k}': v for k, v in scaled(s).state_dict().items()} for s in (0.1, 0.2)]
    taggers = wrap_ensemble(LoudBands, [*states, scaled(0.3).state_dict()], plain_frontend(), CLASSES)
    assert [tagger.network.scale.item() for tagger in taggers] == pytest.approx([0.1, 0.2, 0.3])
    (note,) = capsys.readouterr().out.splitlines()
    assert note.startswith('note: ') and 'in 2 state dicts' in note


STATE = LoudBands().state_dict()
WRONG_ENSEMBLES = {
    'a module': (LoudBands(), [STATE], 'build is a LoudBands: pass the function that builds it, build, not build'),
    'a state dict as builder': (STATE, [STATE], 'build is a OrderedDict: pass the function'),
    'a builder that raises': (failing_builder, [STATE], r'build\(\) failed: no weights here'),
    'a builder of no module': (dict, [STATE], r'build\(\) returned a dict, not a torch.nn.Module'),
    'no file': (LoudBands, 'missing/fold_*.pth', "no file matches 'missing/fold_.*pth'"),
    'nothing': (LoudBands, [], 'no state dicts given'),
    'modules as states': (LoudBands, [LoudBands()], 'is no state dict but a LoudBands: pass network.state_dict'),
    "an optimizer's": (LoudBands, [{'epoch': 1, 'lr': 0.1}], 'no state dict but a dict of epoch, lr'),
    'another network': (
        lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)),
        [{**nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)).state_dict(), 'more': torch.zeros(1)}],
        r"2 of the network's 4 tensors match, '1\.weight' has the shape \(5, 3\), wanted \(4, 3\)",
    ),
    'a stranger': (LoudBands, [{**STATE, 'odd': torch.zeros(1)}], "1 of .* 1 tensors match, 'odd' has the shape"),
    'a missing one': (LoudBands, [{'odd': torch.zeros(1)}], "0 of .* match, 'scale' has the shape of none"),
}


@pytest.mark.parametrize('case', WRONG_ENSEMBLES)
def test_an_ensemble_in_the_wrong_form_is_refused_with_the_right_one(case: str) -> None:
    build, states, words = WRONG_ENSEMBLES[case]
    with pytest.raises(KitError, match=words):
        wrap_ensemble(build, states, plain_frontend(), CLASSES)  # type: ignore[arg-type]


def test_a_file_of_code_is_no_state_dict(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / 'own.pth')
    with pytest.raises(KitError, match=r'cannot be read as tensors .*save network\.state_dict\(\)'):
        wrap_ensemble(LoudBands, tmp_path / 'own.pth', plain_frontend(), CLASSES)  # type: ignore[arg-type]


class ExtraState(LoudBands):
    '''A network whose state dict holds more than tensors.'''

    def get_extra_state(self) -> dict[str, int]:
        '''A table.'''
        return {'step': 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        '''Nothing.'''


def test_a_network_that_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    lazy = LoudBands()
    lazy.head = nn.LazyLinear(3)
    for network, words in ((lazy, 'no shape yet: run a batch'), (ExtraState(), '_extra_state is a dict')):
        with pytest.raises(KitError, match=words):
            save_tagger(tmp_path / 'own.pt', wrap_network(network, plain_frontend(), CLASSES))
    assert not (tmp_path / 'own.pt').exists()


def test_a_hostile_checkpoint_is_one_line_for_submit_and_doctor(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'in', ['a.wav'])
    save_tagger(tmp_path / 'good.pt', pyramid())
    content = torch.load(tmp_path / 'good.pt', weights_only=True)
    card = content['card'].replace('"width": 4', '"width": 60000')
    digest = content_digest(card, content['tensors'])
    torch.save({**content, 'card': card, 'digest': digest}, tmp_path / 'wide.pt')
    torch.save({**content, 'tensors': {'a': torch.zeros(1).expand(10**6, 10**6)}}, tmp_path / 'expanded.pt')
    for name, words in (('wide.pt', 'do not fit its network'), ('expanded.pt', 'a is not contiguous')):
        with pytest.raises(KitError, match=rf'{name}.*{words}') as caught:
            submit(tmp_path / name, folder, tmp_path / 'out.csv', progress=False)
        assert '\n' not in str(caught.value)
    with pytest.raises(KitError, match='1 of 1 checkpoints cannot be used'):
        run_doctor(checkpoints=[str(tmp_path / 'expanded.pt')])


def test_wrapped_networks_are_unwrapped_and_prefixes_stripped(tmp_path: Path) -> None:
    network = LoudBands()
    for wrapper in (nn.DataParallel(network), AveragedModel(network), AveragedModel(nn.DataParallel(network))):
        save_tagger(tmp_path / 'own.pt', wrap_network(wrapper, plain_frontend(), CLASSES, name='mine'))
        assert load_tagger(tmp_path / 'own.pt', networks={'mine': LoudBands}).network.state_dict().keys() == {'scale'}
    tagger = wrap_network(pyramid().network, plain_frontend(), CLASSES, settings=PYRAMID)
    tensors = tagger.network.state_dict()
    for prefix in ('module.', '_orig_mod.', 'model.', 'module._orig_mod.'):
        renamed = {prefix + name: tensor for name, tensor in tensors.items()}
        again = wrap_network({**renamed, 'n_averaged': torch.tensor(3)}, plain_frontend(), CLASSES, settings=PYRAMID)
        assert all(torch.equal(tensors[name], value) for name, value in again.network.state_dict().items())


def pyramid(classes: Sequence[str] = CLASSES) -> Tagger:
    '''A tagger of a small network of the kit's own.'''
    return build_tagger(TaggerCard(classes=tuple(classes), frontend=plain_frontend(), network=PYRAMID))


def test_outputs_that_look_like_probabilities_get_a_note(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'in', ['a.wav', 'b.wav', 'c.wav'])
    for network, is_noted in ((Sigmoid(), True), (LoudBands(), False)):
        report = submit(loud_tagger(network), folder, tmp_path / 'out.csv', progress=False).report
        assert any('are they probabilities?' in note for note in report['notes']) is is_noted


class LogSoftmax(LoudBands):
    '''A network that returns logarithms of probabilities of one class each.'''

    def forward(self, spec: Tensor) -> Tensor:
        return super().forward(spec).log_softmax(dim=1)


class FixedSize(LoudBands):
    '''A network for one length, that none of the clips has after it is extended.'''

    def forward(self, spec: Tensor) -> Tensor:
        return super().forward(spec) + spec[:, 0, :3, :7].flatten(1) @ torch.zeros(21 + spec.shape[-1] % 2 + 1, 3)


def test_outputs_of_log_softmax_and_inputs_of_another_shape_get_the_cure(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'in', ['a.wav', 'b.wav', 'c.wav'])
    report = submit(loud_tagger(LogSoftmax()), folder, tmp_path / 'out.csv', progress=False).report
    assert any('return logits, without log_softmax' in note for note in report['notes'])
    with pytest.raises(KitError, match=r'shapes cannot be multiplied.*bucket_ratio=1'):
        submit(loud_tagger(FixedSize()), folder, tmp_path / 'fixed.csv', progress=False)


def test_probabilities_of_a_network_are_used_as_they_are_where_its_tagger_says_so(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'in', ['a.wav', 'b.wav', 'c.wav'])
    expected = predict_clips(wrap_network(LoudBands(), plain_frontend(), CLASSES), folder).probabilities
    tagger = wrap_network(Sigmoid(), plain_frontend(), CLASSES, returns='probabilities')
    save_tagger(tmp_path / 'own.pt', tagger)
    assert tagger.card.returns == load_tagger(tmp_path / 'own.pt', {'own': Sigmoid}).card.returns
    result = submit(tmp_path / 'own.pt', folder, tmp_path / 'out.csv', networks={'own': Sigmoid}, progress=False)
    assert not any('are they probabilities?' in note for note in result.report['notes'])
    _, scores = read_scores(tmp_path / 'out.csv')
    assert expected.min() > 1e-4 and np.ptp(expected) > 0.05
    np.testing.assert_allclose(list(scores.values()), expected, rtol=0, atol=1e-6)


def test_logits_of_a_network_that_should_return_probabilities_are_an_error(tmp_path: Path) -> None:
    tagger = wrap_network(LoudBands(), plain_frontend(), CLASSES, returns='probabilities')
    with pytest.raises(KitError, match="leave out returns='probabilities'"):
        predict_clips(tagger, write_folder(tmp_path / 'in', ['a.wav']))


def test_rows_after_the_end_of_their_file_get_the_prior_and_are_named(tmp_path: Path) -> None:
    write_wav(tmp_path / 'in' / 'half.wav', noise(15 * 8000))
    write_wav(tmp_path / 'in' / 'short.wav', noise(8000))
    ids = [f'half_{end}' for end in (5, 10, 15, 20, 25, 30)] + ['short_5', 'short_10']
    template = write_template(tmp_path / 'template.csv', ids, ['a', 'b', 'c'])
    out = tmp_path / 'out.csv'
    report = submit(loud_tagger(), tmp_path / 'in', out, template, progress=False).report
    late = ['half_20', 'half_25', 'half_30', 'short_10']
    assert report['rows_after_end'] == late and report['rows_with_prior'] == 4
    assert any('4 rows are windows after the end' in note for note in report['notes'])
    _, scores = read_scores(out)
    for name, row in scores.items():
        assert np.allclose(row, [0.1, 0.2, 0.3]) == (name in late)


def test_ids_that_hold_beginnings_are_read_as_such_and_noted(tmp_path: Path) -> None:
    assert plan_rows(['rec_0', 'rec_5'], ['rec.wav']).ends_s == (5, 10)
    assert plan_rows(['rec_5', 'rec_10'], ['rec.wav']).ends_s == (5, 10)
    assert plan_rows(['clip_0'], ['clip_0.wav']).form == 'stem'
    with pytest.raises(KitError, match="'rec_0' names a window that ends at second 0"):
        plan_rows(['rec_0'], ['rec.wav'])
    write_wav(tmp_path / 'in' / 'rec.wav', noise(10 * 8000))
    template = write_template(tmp_path / 'template.csv', ['rec_0', 'rec_5'], ['a', 'b', 'c'])
    report = submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, progress=False).report
    assert report['rows_all_models'] == 2 and any('BEGINNINGS' in note for note in report['notes'])


def test_a_window_option_without_windows_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'in', ['a.wav'])
    for options in ({'window_s': 2.0, 'hop_s': 1.0}, {'hop_s': 1.0}):
        with pytest.raises(KitError, match='hop_s has no effect on whole clips: add --mode windows'):
            submit(loud_tagger(), folder, tmp_path / 'out.csv', progress=False, **options)
        submit(loud_tagger(), folder, tmp_path / 'out.csv', progress=False, mode='windows', **options)


def test_a_submission_without_any_prediction_says_so_in_its_last_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'in', ['a.wav'])
    template = write_template(tmp_path / 'template.csv', ['x', 'y'], ['a', 'b', 'c'])
    result = submit(loud_tagger(), folder, tmp_path / 'out.csv', template, progress=False)
    assert str(result).splitlines()[-1].startswith('NOTHING WAS PREDICTED')


def test_one_bad_checkpoint_is_named_and_the_others_predict(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'in', ['a.wav', 'b.wav'])
    template = write_template(tmp_path / 'template.csv', ['a.wav', 'b.wav'], CLASSES)
    for name in ('good_0.pt', 'good_1.pt'):
        save_tagger(tmp_path / name, pyramid())
    content = (tmp_path / 'good_0.pt').read_bytes()
    (tmp_path / 'bad_cut.pt').write_bytes(content[: len(content) // 2])
    (tmp_path / 'bad_empty.pt').write_bytes(b'')
    save_tagger(tmp_path / 'bad_classes.pt', pyramid(('x', 'y', 'z')))
    save_tagger(tmp_path / 'bad_builder.pt', wrap_network(LoudBands(), plain_frontend(), CLASSES, name='mine'))
    report = submit(str(tmp_path / '*.pt'), folder, tmp_path / 'out.csv', template, progress=False).report
    assert report['rows_all_models'] == 2 and len(report['models']) == 2
    for name in ('bad_cut', 'bad_empty', 'bad_classes', 'bad_builder'):
        assert any(f'{name}.pt IS LEFT OUT' in note for note in report['notes']), name
    with pytest.raises(KitError, match='none of 2 checkpoints can be used'):
        submit(f'{tmp_path}/bad_[ce][um]*.pt', folder, tmp_path / 'none.csv', template, progress=False)


def test_every_flipped_bit_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    save_tagger(tmp_path / 'good.pt', pyramid())
    content = (tmp_path / 'good.pt').read_bytes()
    places = np.random.default_rng(0).integers(len(content), size=60).tolist()
    # The length of the archive's comment, and the comment's first and last byte.
    places += [len(content) - 73, len(content) - 72, len(content) - 71, len(content) - 1]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (tmp_path / 'flipped.pt').write_bytes(flipped)
        with pytest.raises(KitError):
            load_tagger(tmp_path / 'flipped.pt')


LABELS = {
    'one class in every clip': (['x', 'x'], 'lsep', r'all known labels are true \(x\)'),
    'one class to rank': (['x', ''], 'lsep', "'x' is the only one: use --set loss=bce"),
}


@pytest.mark.parametrize('case', LABELS)
def test_labels_that_leave_nothing_to_learn_are_refused_before_training(case: str, tmp_path: Path) -> None:
    pattern, loss, words = LABELS[case]
    names = [f'{i}.wav' for i in range(8)]
    folder = write_folder(tmp_path / 'in', names)
    rows = [f'{name},{pattern[i % 2]}' for i, name in enumerate(names)]
    (tmp_path / 'table.csv').write_text('fname,labels\n' + '\n'.join(rows) + '\n')
    settings = ['frontend.sample_rate=8000', 'n_folds=2', 'epochs=1', 'no_augment_epochs=0', f'loss={loss}']
    recipe = find_recipe('max-pyramid-mel', small=True, overrides=settings)
    with pytest.raises(KitError, match=words):
        train_run(recipe, tmp_path / 'table.csv', folder, tmp_path / 'run', progress=False)
    assert not list((tmp_path / 'run').glob('*.pt'))


@pytest.mark.parametrize(
    ('written', 'file'),
    [
        ('A.WAV', 'a.wav'),
        ('a.mp3', 'a.wav'),
        ('audio/a.wav', 'a.wav'),
        ('./a.wav', 'a.wav'),
        ('audio\\a.wav', 'a.wav'),
        ('cafe\u0301.wav', 'caf\u00e9.wav'),
        ('caf\u00e9.wav', 'cafe\u0301.wav'),
    ],
)
def test_a_near_name_finds_the_one_file_that_fits_and_is_noted(written: str, file: str) -> None:
    plan = plan_rows([written, 'other.wav'], [file, 'other.wav'])
    assert plan.files == (0, 1) and plan.near_names == (written,)
    assert plan_rows([file, 'other.wav'], [file, 'other.wav']).near_names == ()


def test_a_near_name_that_fits_two_files_finds_none() -> None:
    assert plan_rows(['A.WAV', 'b.wav'], ['a.wav', 'x/a.flac', 'b.wav']).files == (None, 2)


def test_a_dot_in_an_id_is_no_extension_unless_it_names_audio() -> None:
    assert plan_rows(['rec.1', 'rec'], ['rec.wav']).files == (None, 0)


@pytest.mark.parametrize('name', ['out.pt', 'out', 'out.csv.gz', 'out.xlsx', 'folder.csv', 'table.csv', 'foreign.csv'])
def test_an_output_that_is_no_csv_of_its_own_is_refused(tmp_path, name):
    write_folder(tmp_path / 'in', ['a.wav'])
    template = write_template(tmp_path / 'table.csv', ['a.wav'], 'abc')
    (tmp_path / 'folder.csv').mkdir()
    (tmp_path / 'foreign.json').write_text('{"of": "another program"}')
    with pytest.raises(KitError, match=r"choose another --out|out is a CSV's path"):
        submit(loud_tagger(), tmp_path / 'in', tmp_path / name, template, progress=False)
    assert 'another program' in (tmp_path / 'foreign.json').read_text()


def test_an_output_that_is_a_link_is_written_where_it_points_to(tmp_path):
    write_folder(tmp_path / 'in', ['a.wav'])
    (tmp_path / 'real').mkdir()
    (tmp_path / 'out.csv').symlink_to(tmp_path / 'real' / 'there.csv')
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', progress=False)
    assert (tmp_path / 'out.csv').is_symlink() and 'a.wav' in (tmp_path / 'real' / 'there.csv').read_text()


@pytest.mark.parametrize(
    'options',
    [
        {'threads': 0},
        {'batch_frames': -5},
        {'threads': '4'},
        {'started_at': 1.0},
        {'weights': [1e308]},
        {'weights': '0.5'},
        {'weights': {0: 1.0}},
        {'audio': ['in']},
        {'template': [1]},
    ],
)
def test_an_option_that_means_nothing_is_refused(tmp_path, options):
    write_folder(tmp_path / 'in', ['a.wav'])
    arguments = {'audio': tmp_path / 'in', 'out': tmp_path / 'o.csv', 'progress': False} | options
    with pytest.raises(KitError, match='|'.join(options)):
        submit(loud_tagger(), **arguments)


def test_classes_without_an_order_are_refused():
    with pytest.raises(KitError, match='a set, which has no order'):
        wrap_network(LoudBands(3), plain_frontend(), {'a', 'b', 'c'})


@pytest.mark.parametrize(
    'wrong',
    [
        {'checkpoints': None},
        {'checkpoints': [1]},
        {'checkpoints': [['a.pt']]},
        {'checkpoints': {0: 'a.pt'}},
        {'checkpoints': [LoudBands().state_dict()]},
        {'blend': None},
        {'blend': ['mean']},
        {'precision': torch.float16},
        {'decoders': 'soundfile'},
        {'decoders': [open]},
        {'clips': np.zeros(8000)},
        {'clips': None},
        {'clips': b'a.wav'},
        {'clips': [(np.zeros(8000), 8000)]},
        {'inference': {'mode': 'full'}},
    ],
)
def test_a_value_of_another_type_is_refused_with_its_cure(tmp_path, wrong):
    write_folder(tmp_path / 'in', ['a.wav'])
    given = {'checkpoints': [loud_tagger()]} | wrong
    with pytest.raises(KitError, match=r'checkpoint|blend|precision|decoders|clip|inference'):
        if {'clips', 'inference'} & set(wrong):
            predict_clips(given.pop('checkpoints'), **({'clips': tmp_path / 'in'} | given))
        else:
            submit(given.pop('checkpoints'), tmp_path / 'in', tmp_path / 'out.csv', progress=False, **given)


def test_prevalences_are_a_number_per_class():
    with pytest.raises(KitError, match='prevalences is a list, a number per class'):
        loud_tagger(prevalences=0.1)


def test_networks_that_are_one_object_are_refused_as_all_would_have_the_last_tensors(tmp_path: Path) -> None:
    network = LoudBands()
    folder = write_folder(tmp_path / 'in', ['a.wav'])
    taggers = [wrap_network(network, plain_frontend(), CLASSES) for _ in range(2)]
    for predict in (
        lambda: submit(taggers, folder, tmp_path / 'out.csv', progress=False),
        lambda: predict_clips(taggers, folder),
    ):
        with pytest.raises(KitError, match='two models share one network'):
            predict()
    states = [scaled(scale).state_dict() for scale in (0.1, 0.2)]
    with pytest.raises(KitError, match='one network twice'):
        wrap_ensemble(lambda: network, states, plain_frontend(), CLASSES)
    for number, state in enumerate(states):
        save_tagger(
            tmp_path / f'{number}.pt', wrap_ensemble(LoudBands, [state], plain_frontend(), CLASSES, name='mine')[0]
        )
    with pytest.raises(KitError, match='two models share one network'):
        submit(tmp_path / '*.pt', folder, tmp_path / 'out.csv', networks={'mine': lambda: network}, progress=False)


@pytest.mark.parametrize(
    'pools', [(nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)]
)
def test_a_builder_that_builds_another_network_gets_predictions_of_its_own(
    tmp_path: Path, pools: Sequence[type[nn.Module]]
) -> None:
    folder = write_folder(tmp_path / 'in', ['a.wav'])
    build = {pool: lambda pool=pool: nn.Sequential(nn.Conv2d(1, 3, 3), pool(1), nn.Flatten()) for pool in pools}
    torch.manual_seed(0)
    save_tagger(
        tmp_path / 'own.pt', wrap_network(build[pools[0]](), plain_frontend(), CLASSES, name='mine', min_frames=3)
    )
    scores = []
    for pool in (*pools, pools[1]):
        out = tmp_path / ('fresh.csv' if len(scores) == 2 else 'out.csv')
        submit(tmp_path / 'own.pt', folder, out, networks={'mine': build[pool]}, progress=False)
        scores.append(read_scores(out)[1]['a.wav'])
    assert not np.allclose(scores[0], scores[1])
    np.testing.assert_array_equal(scores[1], scores[2])


def test_a_sound_that_is_no_array_is_refused_and_lost_sound_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KitError, match='wave of a sound is no Tensor'):
        predict_clips(loud_tagger(), [Sound(torch.zeros(4000), 8000)])  # type: ignore[arg-type]
    predict_clips(loud_tagger(), [Sound(30000 * noise(4000), 8000)])
    assert 'far beyond full scale' in capsys.readouterr().out
