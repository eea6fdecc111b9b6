'''Warm start: networks start from the tensors of a file, what does not fit starts anew, and scores stay honest.'''

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.tagger import Tagger
from kit.train.fold_training import fill_from, new_tagger, read_init
from kit.train.optim import OptimConfig, build_optimizer
from kit.train.run import train_run
from kit.train.trainer import Trainer
from tests.behaviour.training import (
    CLASSES,
    TINY,
    Killed,
    copy_weights,
    load_table,
    new_trainer,
    same_bits,
    same_checkpoints,
    train_all,
    train_quietly,
    weights_of,
)

pytestmark = pytest.mark.usefixtures('one_core')

SHORT = TINY.override(['epochs=2', 'validate_every=2', 'loss=bce', 'network.head.hidden=6', 'mixup.p=0'])
BACKBONE = 'backbone.'


@pytest.fixture(scope='module')
def pre(toy, tmp_path_factory):
    '''A run of two folds, and one of all clips, in one folder.'''
    folder = tmp_path_factory.mktemp('pre') / 'pre'
    train_quietly(SHORT, *toy, folder)
    train_quietly(SHORT, *toy, folder, all_data=True)
    return folder


@pytest.fixture
def starts(monkeypatch):
    '''The weights of every network before its first step, by fold.'''
    weights = {}
    train = Trainer.train

    def recorded(self, *arguments):
        weights[self.fold] = copy_weights(self.network)
        return train(self, *arguments)

    monkeypatch.setattr(Trainer, 'train', recorded)
    return weights


def save_state(path, state):
    '''Write a file of torch.save.'''
    torch.save(state, path)
    return path


def table_of(toy, folder, **changes):
    '''The toy table with other columns, in a file.'''
    path = folder / 'table.csv'
    pd.read_csv(toy[0]).assign(**changes).to_csv(path, index=False)
    return path


# Which tensors a network starts from


def test_a_network_equals_the_init_model_before_its_first_step(pre, toy, data, tmp_path, starts, capsys):
    train_quietly(SHORT, *toy, tmp_path / 'run', init=pre / 'fold_0.pt', only_folds=[0])
    assert same_bits(starts[0], weights_of(pre / 'fold_0.pt'))
    assert "fills 69 of the network's 69 tensors." in capsys.readouterr().out
    tagger = new_tagger(SHORT, data, 0)
    fill_from(read_init(pre / 'fold_0.pt'), tagger)
    clips = sorted(toy[1].glob('*.wav'))
    logits, expected = (
        predict_clips(model, clips, device='cpu', threads=1, progress=False).probabilities
        for model in (tagger, load_tagger(pre / 'fold_0.pt'))
    )
    # The checkpoint's scale and offset are no tensors: bce has none.
    np.testing.assert_array_equal(logits, expected)


def test_every_seed_of_a_fold_starts_from_the_file_and_is_trained_otherwise(pre, toy, tmp_path):
    recipe = SHORT.override(['seeds=2'])
    run = train_quietly(recipe, *toy, tmp_path / 'run', init=pre / 'fold_0.pt', only_folds=[0])
    assert not same_checkpoints(run.folder / 'fold_0.pt', run.folder / 'fold_0_seed_1.pt')


def test_other_classes_start_a_new_output_layer_and_the_note_names_it(pre, toy, data, tmp_path, starts, capsys):
    table = table_of(toy, tmp_path, labels=['high,low', 'low,extra'] * 7, fold=[0, 0, 1, 1] * 3 + [0, 1])
    train_quietly(SHORT, table, toy[1], tmp_path / 'run', init=pre / 'all.pt')
    first = capsys.readouterr().out
    # As many classes as before, so that the shapes fit: the card's names decide.
    assert "fills 67 of the network's 69 tensors; new: head.classifier.5.weight, head.classifier.5.bias." in first
    assert first.count('fills') == 1
    before = weights_of(pre / 'all.pt')
    random = new_tagger(SHORT, replace(data, classes=('extra', 'high', 'low')), 0).network.state_dict()
    for name, value in starts[0].items():
        assert torch.equal(value, random[name] if name.startswith('head.classifier.5') else before[name])

    fewer = table_of(toy, tmp_path, labels=['high', 'low'] * 7, fold=[0, 0, 1, 1] * 3 + [0, 1])
    train_quietly(SHORT, fewer, toy[1], tmp_path / 'fewer', init=pre / 'all.pt', only_folds=[0])
    assert 'new: head.classifier.5.weight, head.classifier.5.bias.' in capsys.readouterr().out
    assert starts[0]['head.classifier.5.bias'].shape == (2,)


@pytest.mark.parametrize('head', ['hidden=3', 'pool=attention network.head.norm_first=false'])
def test_rows_of_the_output_layers_follow_the_order_of_the_classes(data, tmp_path, head):
    '''With a hidden layer as wide as there are classes, only the output layer's rows move.'''
    recipe = SHORT.override(f'network.head.{head}'.split())
    other = new_tagger(recipe, data, None)
    save_tagger(tmp_path / 'all.pt', Tagger(replace(other.card, classes=CLASSES[::-1]), other.network))
    tagger = new_tagger(recipe, data, 0)
    assert tagger.card.classes == CLASSES
    fill_from(read_init(tmp_path / 'all.pt'), tagger.eval())
    specs = torch.randn(2, 2, 16, 30)
    expected = other.network.eval()(specs).flip(1)
    torch.testing.assert_close(tagger.network(specs), expected, rtol=1e-5, atol=1e-6)


def test_a_run_with_another_order_of_classes_says_so(pre, toy, tmp_path, capsys):
    tagger = load_tagger(pre / 'all.pt')
    save_tagger(tmp_path / 'all.pt', Tagger(replace(tagger.card, classes=CLASSES[::-1]), tagger.network))
    train_quietly(SHORT, *toy, tmp_path / 'run', init=tmp_path / 'all.pt', only_folds=[0])
    assert "69 tensors; the output layer's rows follow the order of the classes" in capsys.readouterr().out


@pytest.mark.parametrize('wrap', ['', 'module.', '_orig_mod.', 'model.', 'module._orig_mod.'])
@pytest.mark.parametrize('key', [None, 'state_dict', 'model_state_dict'])
def test_state_dicts_are_read_with_the_prefixes_of_wrappers(pre, data, tmp_path, wrap, key):
    state = weights_of(pre / 'all.pt')
    wrapped = {f'{wrap}{name}': value for name, value in state.items()}
    file = save_state(tmp_path / 'state.pth', wrapped if key is None else {key: wrapped, 'epoch': 3})
    tagger = new_tagger(SHORT, data, 0)
    fill_from(read_init(file), tagger)
    assert same_bits(tagger.network.state_dict(), state)


def test_half_precision_old_batch_norms_and_channels_last_are_loaded(pre, toy, tmp_path, starts, capsys):
    state = {name: value.half() for name, value in weights_of(pre / 'all.pt').items() if 'num_batches' not in name}
    state = {n: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for n, v in state.items()}
    file = save_state(tmp_path / 'half.pth', state)
    train_quietly(SHORT, *toy, tmp_path / 'run', init=str(file), only_folds=[1])
    assert all(torch.equal(starts[1][name], value.float()) for name, value in state.items())
    said = capsys.readouterr().out
    assert "fills 69 of the network's 69 tensors; it names no classes: the output layer is used as it is." in said


# Files that are refused


def test_a_file_that_fits_too_little_is_refused_with_names_of_both_sides(pre, toy, tmp_path):
    state = weights_of(pre / 'all.pt')
    heads = {name: value for name, value in state.items() if not name.startswith(BACKBONE)}
    cases = {
        'wide': ('network.width=8', state, r'fills \d+% .* has backbone\.\S+ \(4, .* wants backbone\.\S+ \(8, '),
        'heads': ('network.head.hidden=512', heads, 'has head.*wants backbone'),
        'names': ('seed=0', {f'x.{name}': value for name, value in state.items()}, r'fills 0% .* has x\.'),
    }
    for name, (setting, tensors, message) in cases.items():
        file = save_state(tmp_path / f'{name}.pth', tensors)
        with pytest.raises(KitError, match=f'{message}.*settings to those it was trained with'):
            train_quietly(SHORT.override([setting]), *toy, tmp_path / name, init=file)
        assert not (tmp_path / name).exists()


def test_a_head_that_makes_up_most_of_the_network_does_not_replace_its_backbone(pre, toy, tmp_path):
    '''More than half of the weights fit, and none is of the backbone.'''
    recipe = SHORT.override(['network.head.hidden=512'])
    state = new_tagger(recipe, load_table(recipe, *toy), 0).network.state_dict()
    heads = {name: value for name, value in state.items() if not name.startswith(BACKBONE)}
    share = sum(map(torch.numel, heads.values())) / sum(map(torch.numel, state.values()))
    assert share > 0.5
    file = save_state(tmp_path / 'heads.pth', heads)
    with pytest.raises(KitError, match=r'the network wants backbone\.'):
        train_quietly(recipe, *toy, tmp_path / 'run', init=file)


class Executable:
    '''Would run code when it is unpickled.'''

    def __reduce__(self):
        return print, ('loaded',)


def test_nothing_executable_is_loaded_and_other_files_are_refused(toy, tmp_path, capsys):
    '''Law 10.'''
    (tmp_path / 'text.pt').write_text('no tensors')
    cases = {
        'code.pt': (save_state(tmp_path / 'code.pt', {'state_dict': Executable()}), 'cannot be read as tensors'),
        'text.pt': (tmp_path / 'text.pt', 'cannot be read as tensors'),
        'list.pt': (save_state(tmp_path / 'list.pt', [torch.ones(1)]), 'is no state dict but a list'),
        'none.pt': (tmp_path / 'none.pt', 'no file .*none.pt for --init'),
    }
    for file, message in cases.values():
        with pytest.raises(KitError, match=message):
            train_quietly(SHORT, *toy, tmp_path / 'run', init=file)
    assert not (tmp_path / 'run').exists() and 'loaded' not in capsys.readouterr().out


# Out of fold


def test_a_pattern_with_fold_gives_each_fold_its_own_model_and_nothing_to_warn_of(pre, toy, tmp_path, starts, capsys):
    '''Law 4.'''
    init = str(pre / 'fold_{fold}.pt')
    train_quietly(SHORT, *toy, tmp_path / 'run', init=init)
    for fold in (0, 1):
        assert same_bits(starts[fold], weights_of(pre / f'fold_{fold}.pt'))
    said = capsys.readouterr().out
    assert said.count('init:') == 1 and 'honest' not in said and 'WARNING' not in said
    with pytest.raises(KitError, match=r'a model of all clips has no fold.*--init pre/all\.pt'):
        train_quietly(SHORT, *toy, tmp_path / 'run', init=init, all_data=True)
    with pytest.raises(KitError, match=r'no file .*seed_0\.pt for --init'):
        train_quietly(SHORT, *toy, tmp_path / 'none', init=str(pre / 'seed_{fold}.pt'))


def test_a_model_of_another_fold_is_a_leak_and_one_of_unknown_clips_may_be(pre, toy, tmp_path, capsys):
    '''Law 4.'''
    train_quietly(SHORT, *toy, tmp_path / 'leak', init=pre / 'fold_0.pt')
    said = capsys.readouterr().out
    assert 'WARNING: init: fold 1 starts from a model that trained on its held-out clips' in said
    assert 'honest' not in said

    # all.pt, a state dict, and the same fold with other clips: nobody knows.
    state = save_state(tmp_path / 'state.pth', weights_of(pre / 'fold_0.pt'))
    moved = table_of(toy, tmp_path, fold=[0, 0, 1, 1] * 3 + [0, 1])
    cases = [(toy[0], pre / 'all.pt'), (toy[0], state), (moved, pre / 'fold_0.pt')]
    for number, (table, file) in enumerate(cases):
        train_quietly(SHORT, table, toy[1], tmp_path / str(number), init=file, only_folds=[0])
        said = capsys.readouterr().out
        assert f'honest only if the model of {file} never trained on' in said and 'WARNING' not in said

    # A model of all clips is not scored.
    train_quietly(SHORT, *toy, tmp_path / 'all', init=pre / 'all.pt', all_data=True)
    assert 'honest' not in capsys.readouterr().out


# Continuing a run


def test_a_killed_run_resumes_from_the_same_init_bit_for_bit(pre, toy, tmp_path, monkeypatch):
    '''Law 7. The pre-training may be run again between: its checkpoint gets another score, not other tensors.'''
    init = str(pre / 'fold_{fold}.pt')
    recipe = SHORT.override(['optim.freeze_epochs=1', 'optim.average=ema', 'epochs=4'])
    whole = train_quietly(recipe, *toy, tmp_path / 'whole', init=init)
    save = Trainer.save

    def killed(self, path):
        save(self, path)
        if self.fold == 1 and self.epoch == 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, 'save', killed)
        with pytest.raises(Killed):
            train_quietly(recipe, *toy, tmp_path / 'run', init=init)
    copy = shutil.copytree(pre, tmp_path / 'copy')
    tagger = load_tagger(copy / 'fold_1.pt')
    save_tagger(copy / 'fold_1.pt', Tagger(replace(tagger.card, oof_score=0.5), tagger.network))
    again = train_quietly(recipe, *toy, tmp_path / 'run', init=str(copy / 'fold_{fold}.pt'))
    for fold in (0, 1):
        assert same_checkpoints(again.folder / f'fold_{fold}.pt', whole.folder / f'fold_{fold}.pt')
    assert (again.folder / 'oof.csv').read_bytes() == (whole.folder / 'oof.csv').read_bytes()


def test_another_init_or_none_is_refused_in_the_folder_of_a_run(pre, toy, tmp_path):
    run, plain = tmp_path / 'run', tmp_path / 'plain'
    train_quietly(SHORT, *toy, run, init=pre / 'fold_0.pt', only_folds=[0])
    train_quietly(SHORT, *toy, plain, only_folds=[0])
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    assert [*json.loads((run / 'init.json').read_text())] == ['fold_0', 'fold_1']
    assert not (plain / 'init.json').exists()
    other = r'belongs to another run \(fold_\d.* started from other tensors\): choose another --out'
    cases = [
        (run, {'init': pre / 'all.pt', 'only_folds': [0]}, other),
        (run, {'init': pre / 'all.pt', 'only_folds': [1]}, other),
        (run, {'init': str(pre / 'fold_{fold}.pt')}, other),
        (run, {}, r'another run \(its networks started from an --init\)'),
        (plain, {'init': pre / 'fold_0.pt'}, r'another run \(its networks started from random weights\)'),
    ]
    for folder, options, message in cases:
        with pytest.raises(KitError, match=message):
            train_quietly(SHORT, *toy, folder, **options)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_folds_may_be_trained_one_by_one_and_then_all_clips(pre, toy, tmp_path):
    for fold in (0, 1):
        train_quietly(SHORT, *toy, tmp_path / 'run', init=str(pre / 'fold_{fold}.pt'), only_folds=[fold])
    train_quietly(SHORT, *toy, tmp_path / 'run', init=pre / 'all.pt', all_data=True)
    assert [*json.loads((tmp_path / 'run' / 'init.json').read_text())] == ['fold_0', 'fold_1', 'all']


def test_a_run_killed_between_its_files_continues(pre, toy, tmp_path, monkeypatch):
    '''Law 7.'''
    names_of_run = train_run.__globals__  # those of all of kit in the bundle
    write = names_of_run['write_text']
    for n_files in range(3):
        names = []

        def killed(path, text, names=names, limit=n_files):
            if len(names) == limit:
                raise Killed
            names.append(path.name)
            write(path, text)

        with monkeypatch.context() as patch:
            patch.setitem(names_of_run, 'write_text', killed)
            with pytest.raises(Killed):
                train_quietly(SHORT, *toy, tmp_path / str(n_files), init=pre / 'all.pt', only_folds=[0])
        train_quietly(SHORT, *toy, tmp_path / str(n_files), init=pre / 'all.pt', only_folds=[0])


# Frozen epochs, and rates by layer


@pytest.mark.parametrize('average', ['none', 'ema'])
def test_a_frozen_backbone_keeps_its_weights_and_statistics_for_its_epochs(data, tmp_path, average):
    '''Also those that are validated. Then it trains, and the schedule is that of a run without frozen epochs.'''
    settings = ['epochs=4', 'validate_every=1', f'optim.average={average}', 'optim.ema_decay=0.5']
    recipe = SHORT.override([*settings, 'optim.freeze_epochs=2'])
    trainer, plain = new_trainer(data, recipe), new_trainer(data, SHORT.override(settings))
    first = copy_weights(trainer.network)
    validated = []

    def validate():
        validated.append(copy_weights(trainer.network))
        return 0.0

    trained = []
    for _ in trainer.train(tmp_path / 'state.pt', validate):
        trained.append(copy_weights(trainer.network))
    train_all(plain, tmp_path / 'plain.pt')
    for epoch in range(4):
        for weights in (trained[epoch], validated[epoch]):
            moved = {name for name in first if not torch.equal(weights[name], first[name])}
            assert any(name.startswith('head.') for name in moved)
            statistics = {name for name in moved if name.endswith(('running_mean', 'running_var'))}
            assert any(name.startswith(BACKBONE) for name in moved) == (epoch >= 2)
            assert any(name.startswith(BACKBONE) for name in statistics) == (epoch >= 2)
    assert [row['lr'] for row in trainer.history] == [row['lr'] for row in plain.history]


def test_there_are_no_more_frozen_epochs_than_epochs():
    with pytest.raises(KitError, match=r'freeze_epochs must be at most epochs \(3\), got 4'):
        SHORT.override(['epochs=3', 'optim.freeze_epochs=4'])


@pytest.mark.parametrize('layer_decay', [2.0, 0.5, 1e3, 1e-3])
def test_the_first_layers_learn_fastest_above_one_and_slowest_below(layer_decay):
    network = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(8)])
    groups = build_optimizer(OptimConfig(layer_decay=layer_decay), network).param_groups
    assert [group['params'][0] for group in groups] == [*network.parameters()]
    rates = np.array([group['lr'] for group in groups])
    np.testing.assert_allclose(rates, 5e-3 * layer_decay ** np.linspace(1, 0, 8))
    assert int(rates.argmax()) == (0 if layer_decay > 1 else 7)


@pytest.mark.parametrize('layer_decay', [2e3, 5e-4])
def test_rates_that_differ_more_than_a_thousandfold_are_refused(layer_decay):
    with pytest.raises(KitError, match='layer_decay'):
        OptimConfig(layer_decay=layer_decay)


# A training before, as a setting of the recipe


def test_a_pretraining_is_the_same_as_a_training_before_and_init(toy, tmp_path):
    table = table_of(toy, tmp_path, source=['curated', 'curated', 'noisy'] * 4 + ['curated', 'noisy'])
    both = SHORT.override(['sources={"curated":{},"noisy":{"scored":false}}'])
    noisy = ['sources={"curated":{"share":0},"noisy":{"share":1,"scored":false}}', 'epochs=1']
    recipe = replace(both, pretrain=' '.join(noisy))
    run = train_quietly(recipe, table, toy[1], tmp_path / 'run')
    train_quietly(both.override(noisy), table, toy[1], tmp_path / 'first')
    train_quietly(both, table, toy[1], tmp_path / 'second', init=tmp_path / 'first' / 'fold_{fold}.pt')
    for fold in (0, 1):
        assert same_bits(
            weights_of(tmp_path / 'run' / 'pretrained' / f'fold_{fold}.pt'),
            weights_of(tmp_path / 'first' / f'fold_{fold}.pt'),
        )
        assert same_bits(
            weights_of(tmp_path / 'run' / f'fold_{fold}.pt'), weights_of(tmp_path / 'second' / f'fold_{fold}.pt')
        )
    assert train_quietly(recipe, table, toy[1], tmp_path / 'run').oof.score == run.oof.score
    train_quietly(recipe, table, toy[1], tmp_path / 'run', all_data=True)
    assert (tmp_path / 'run' / 'pretrained' / 'all.pt').is_file()


def test_a_pretraining_without_clips_is_left_out_and_one_beside_init_refused(toy, tmp_path, capsys):
    both = SHORT.override(['sources={"curated":{},"noisy":{"scored":false}}', 'epochs=1'])
    recipe = replace(both, pretrain='sources={"curated":{"share":0},"noisy":{"share":1}}')
    train_quietly(recipe, *toy, tmp_path / 'run', only_folds=[0])
    assert 'the table has no clips for the pretraining' in capsys.readouterr().out
    assert not (tmp_path / 'run' / 'pretrained').exists()
    with pytest.raises(KitError, match='both start the networks'):
        train_quietly(recipe, *toy, tmp_path / 'other', init=tmp_path / 'run' / 'fold_0.pt')
    with pytest.raises(KitError, match="no setting 'lost'"):
        replace(both, pretrain='lost=1')
