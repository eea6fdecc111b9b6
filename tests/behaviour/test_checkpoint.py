'''A checkpoint is tensors and JSON: it comes back whole, and a file from elsewhere runs nothing.'''

import contextlib
import json
import pickle
import struct
import zipfile

import pytest
import torch
from torch import nn

from kit.audio.frontend import FrontendConfig
from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.labels.calibration import Calibration
from kit.models.checkpoint import FORMAT, content_digest, find_models, load_tagger, open_checkpoint, save_tagger
from kit.models.tagger import Tagger, TaggerCard, build_tagger, wrap_network

FRONTEND = FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=16)
CLASSES = ('Bark', 'Größe, tief', '音')
PYRAMID = {'family': 'max-pyramid', 'blocks': 2, 'width': 4}


def small_card(**changes):
    '''A card whose every setting differs from its default.'''
    settings = {
        'classes': CLASSES,
        'prevalences': (0.1, 0.25, 1 / 3),
        'frontend': FRONTEND,
        'inference': InferenceConfig(mode='windows', window_s=1.0, hop_s=0.25, pool='snr', pool_k=2),
        'network': PYRAMID,
        'min_frames': 3,
        'output': 'ranking',
        'calibration': Calibration(scale=1.7, offset=-0.3),
        'fold': 2,
        'held_out': 'abc',
        'seed': 5,
        'oof_score': 0.8125,
        'recipe': {'name': 'own', 'epochs': 3},
    }
    return TaggerCard(**(settings | changes))


def small_tagger(**changes):
    '''A small tagger in evaluation mode whose batch norms are not the initial ones.'''
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tagger = build_tagger(small_card(**changes))
        with torch.no_grad():
            for tensor in tagger.network.state_dict().values():
                tensor.add_(torch.rand(tensor.shape).to(tensor.dtype))
    return tagger.eval()


def waves():
    '''Noise. Shape: -> (3, 4000)'''
    return 0.1 * torch.randn(3, 4000, generator=torch.Generator().manual_seed(1))


def content_of(tagger, **changes):
    '''What a checkpoint file holds, with parts replaced and the digest of what it then holds.'''
    card = json.dumps(tagger.card.to_dict())
    content = {'format': FORMAT, 'card': card, 'tensors': tagger.network.state_dict()} | changes
    with contextlib.suppress(AttributeError):  # what holds no tensors has no digest
        content['digest'] = content_digest(content['card'], content['tensors'])
    return content


def error_of(path, networks=None):
    '''The one line that refuses a file; it names the file.'''
    with pytest.raises(KitError) as caught:
        load_tagger(path, networks)
    message = str(caught.value)
    assert str(path) in message and '\n' not in message
    return message


class CustomNetwork(nn.Module):
    '''A network that is not of the kit's families.'''

    def __init__(self, classes=3):
        super().__init__()
        self.head = nn.Linear(16, classes)

    def forward(self, spec):
        return self.head(spec.mean(dim=(1, 3)))


def test_a_tagger_comes_back_with_every_weight_and_its_whole_card(tmp_path):
    tagger = small_tagger()
    save_tagger(tmp_path / 'a.pt', tagger)
    loaded = load_tagger(tmp_path / 'a.pt')
    assert loaded.card == tagger.card and loaded.min_frames == tagger.min_frames == 4
    assert not loaded.network.training
    state, loaded_state = tagger.network.state_dict(), loaded.network.state_dict()
    assert list(state) == list(loaded_state)
    for name, tensor in state.items():
        assert torch.equal(tensor, loaded_state[name]) and tensor.dtype == loaded_state[name].dtype, name
    with torch.inference_mode():
        logits = tagger(waves())
        assert torch.equal(loaded(waves()), logits)
    torch.testing.assert_close(loaded.probabilities(logits), torch.sigmoid(1.7 * logits - 0.3))


def test_a_checkpoint_is_read_once_and_built_as_often_as_needed(tmp_path, monkeypatch):
    save_tagger(tmp_path / 'a.pt', small_tagger())
    checkpoint = open_checkpoint(tmp_path / 'a.pt')
    monkeypatch.setattr(TaggerCard, '__post_init__', None)
    first, second = checkpoint.build(), checkpoint.build()
    assert first.card is second.card is checkpoint.card and checkpoint.path == tmp_path / 'a.pt'
    with torch.inference_mode():
        assert torch.equal(first(waves()), second(waves()))


def test_saving_twice_gives_the_same_card_and_tensors_and_leaves_no_other_file(tmp_path):
    for _ in range(2):
        save_tagger(tmp_path / 'deep' / 'a.pt', small_tagger())
    assert [path.name for path in (tmp_path / 'deep').iterdir()] == ['a.pt']
    save_tagger(tmp_path / 'b.pt', load_tagger(tmp_path / 'deep' / 'a.pt'))
    one = open_checkpoint(tmp_path / 'deep' / 'a.pt')
    card, tensors = one.card, one.tensors
    other = open_checkpoint(tmp_path / 'b.pt')
    other_card, other_tensors = other.card, other.tensors
    assert card == other_card
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)


def test_a_checkpoint_holds_tensors_and_json_and_nothing_else(tmp_path):
    save_tagger(tmp_path / 'a.pt', small_tagger())
    content = torch.load(tmp_path / 'a.pt', weights_only=True)
    assert set(content) == {'format', 'card', 'tensors', 'digest'} and content['format'] == FORMAT
    card = json.loads(content['card'])
    assert card['classes'] == list(CLASSES) and card['version'] and card['frontend']['n_fft'] == 256
    assert all(isinstance(tensor, torch.Tensor) for tensor in content['tensors'].values())
    with zipfile.ZipFile(tmp_path / 'a.pt') as archive:
        code = b''.join(archive.read(name) for name in archive.namelist() if name.endswith('.pkl'))
    assert b'kit.' not in code and b'audiotag' not in code


def test_a_tagger_in_channels_last_is_saved_contiguous(tmp_path):
    tagger = small_tagger()
    tagger.network.to(memory_format=torch.channels_last)
    save_tagger(tmp_path / 'a.pt', tagger)
    tensors = open_checkpoint(tmp_path / 'a.pt').tensors
    state = tagger.network.state_dict()
    assert all(torch.equal(state[name], x) and x.is_contiguous() for name, x in tensors.items())


def test_a_failed_save_leaves_the_last_good_file(tmp_path):
    tagger = small_tagger()
    save_tagger(tmp_path / 'a.pt', tagger)
    good = (tmp_path / 'a.pt').read_bytes()
    tagger.network.register_buffer('odd', torch.zeros(2, device='meta'))
    with pytest.raises(KitError, match='odd is on the device meta, where a plain tensor is needed'):
        save_tagger(tmp_path / 'a.pt', tagger)
    assert (tmp_path / 'a.pt').read_bytes() == good


@pytest.mark.parametrize('name', ['file/a.pt', 'x' * 300 + '.pt'])
def test_a_place_that_cannot_be_written_is_an_error_with_the_cure(tmp_path, name):
    (tmp_path / 'file').touch()
    with pytest.raises(KitError, match='cannot write'):
        save_tagger(tmp_path / name, small_tagger())


class Executable:
    '''Writes a file where it is unpickled.'''

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pickle', 'card', 'tensors', 'one tensor', 'network'])
def test_a_file_that_holds_code_is_refused_with_the_cure_and_runs_nothing(tmp_path, form):
    path, marker = tmp_path / 'a.pt', tmp_path / 'executed'
    code = Executable(marker)
    contents = {
        'card': content_of(small_tagger(), card=code),
        'tensors': content_of(small_tagger(), tensors=code),
        'one tensor': content_of(small_tagger(), tensors={'a': torch.zeros(2), 'b': code}),
        'network': [CustomNetwork(), code],
    }
    if form == 'pickle':
        path.write_bytes(pickle.dumps(code))
    else:
        torch.save(contents.get(form, code), path, _use_new_zipfile_serialization=form != 'legacy')
    message = error_of(path)
    assert 'nothing executable' in message and 'state_dict' in message and 'save_tagger' in message
    assert not marker.exists()
    torch.load(path, weights_only=False) if form != 'pickle' else pickle.loads(path.read_bytes())
    assert marker.exists(), 'the trap itself must work'


def test_a_plain_state_dict_is_refused_with_what_it_holds_and_how_to_wrap_it(tmp_path):
    path = tmp_path / 'a.pt'
    state = small_tagger().network.state_dict()
    torch.save(state, path)
    message = error_of(path)
    assert 'blocks.0' in message and 'returns logits' in message
    assert 'save_tagger(path, wrap_network(network, frontend, classes))' in message
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert 'save_tagger' in error_of(path)


@pytest.mark.parametrize('content', [{'model': {}}, [1, 2], torch.zeros(3), {}, 5, None, {1: 2}], ids=repr)
def test_a_file_of_other_tensors_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / 'a.pt')
    assert 'no checkpoint of this kit' in error_of(tmp_path / 'a.pt')


def test_a_file_that_is_no_whole_archive_is_refused(tmp_path):
    save_tagger(tmp_path / 'whole.pt', small_tagger())
    whole = (tmp_path / 'whole.pt').read_bytes()
    for content in (b'', b'fname,labels\n', b'PK\x03\x04', whole[: len(whole) // 2], whole[:-30]):
        (tmp_path / 'a.pt').write_bytes(content)
        assert 'cannot be read as tensors and JSON' in error_of(tmp_path / 'a.pt')
    (tmp_path / 'folder.pt').mkdir()
    for name in ('folder.pt', 'missing.pt'):
        assert 'no checkpoint' in error_of(tmp_path / name)


@pytest.mark.parametrize('number', [FORMAT + 1, 0, 99, '2'])
def test_another_format_is_refused_with_the_kit_that_reads_it(tmp_path, number):
    torch.save(content_of(small_tagger(), format=number), tmp_path / 'a.pt')
    message = f'has checkpoint format {number!r}, this kit reads {FORMAT}: use the kit that wrote it'
    assert message in error_of(tmp_path / 'a.pt')


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    tagger = small_tagger()
    tensors = tagger.network.state_dict()
    name = next(iter(tensors))
    wrong_tensors = [
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, 'stranger': torch.zeros(2)},
        {**tensors, name: torch.zeros(99)},
        {},
        small_tagger(network={**PYRAMID, 'width': 5}).network.state_dict(),
    ]
    for wrong in wrong_tensors:
        torch.save(content_of(tagger, tensors=wrong), tmp_path / 'a.pt')
        assert 'its tensors do not fit its network' in error_of(tmp_path / 'a.pt')


@pytest.mark.parametrize('tensors', [[1, 2], torch.zeros(2), None], ids=['list', 'tensor', 'none'])
def test_tensors_that_are_no_table_are_refused(tmp_path, tensors):
    torch.save(content_of(small_tagger(), tensors=tensors), tmp_path / 'a.pt')
    assert 'is damaged' in error_of(tmp_path / 'a.pt')


@pytest.mark.parametrize('card', ['{cut', '3', 'null', '[]', 7, torch.zeros(2)], ids=lambda c: str(c)[:6])
def test_a_card_that_cannot_be_read_is_refused(tmp_path, card):
    torch.save(content_of(small_tagger(), card=card), tmp_path / 'a.pt')
    error_of(tmp_path / 'a.pt')


PYRAMID_CARD = {**PYRAMID, 'head': {'pool': 'mean', 'hidden': 0}}
HOSTILE_CARDS = {
    'a long transform': ({'frontend': {'n_fft': 2**30}}, 'n_fft must be at most'),
    'a negative transform': ({'frontend': {'n_fft': -5}}, 'n_fft must be at least 16, got -5'),
    'filters times bands': (
        {'frontend': {'n_fft': 2**16, 'sample_rate': 44100, 'bands_hz': [[0, 20000]] * 4000}},
        'mel filters may have at most',
    ),
    'many bands': ({'frontend': {'n_mels': 1, 'bands_hz': [[0, 3000]] * 5000}}, 'at most 4096 items'),
    'long bands': ({'frontend': {'bands_hz': [[0] * 50]}}, 'at most 16 items, got 50'),
    'many resolutions': ({'frontend': {'resolutions': [[256, 128]] * 17}}, 'at most 16 items, got 17'),
    'a large image': ({'frontend': {'image_size': [2**20, 2**20]}}, 'image_size must be at most'),
    'many classes': ({'classes': list(map(str, range(100_001)))}, 'at most 100000 items, got 100001'),
    'a long name': ({'held_out': 'x' * 20_000}, 'at most 10000 characters, got 20000'),
    'a huge integer': ({'seed': 10**4000}, 'seed must be at most'),
    'a huge integer as a float': ({'frontend': {'mean': 10**4000}}, 'mean must be at most'),
    'NaN': ({'frontend': {'mean': float('nan')}}, 'mean must be at least'),
    'infinity': ({'inference': {'hop_s': float('inf')}}, 'hop_s must be at most'),
    "Python's own words": ({'frontend': {'cls': 1, 'self': 2}}, "no setting 'cls'"),
    'a group that is a number': ({'frontend': 3}, 'wants FrontendConfig, got 3'),
    'a head that is a number': ({'network': {**PYRAMID, 'head': 3}}, 'wants HeadConfig, got 3'),
    'a family that is a list': ({'network': {'family': [1]}}, 'unknown network family'),
    'a wide network': ({'network': {**PYRAMID, 'width': 2**20}}, 'width must be at most'),
    'wide and wide': ({'network': {'family': 'skip-attention', 'width': 60_000}}, 'do not fit its network'),
    'hidden and hidden': ({'network': {**PYRAMID, 'width': 60_000, 'growth': 4}}, 'do not fit its network'),
    'a deep recipe': ({'recipe': json.loads('{"a":' * 99 + '1' + '}' * 99)}, 'nested more than 64 deep'),
}


@pytest.mark.parametrize('case', HOSTILE_CARDS)
def test_a_card_of_any_size_is_refused_by_what_is_too_large_before_anything_is_built(tmp_path, case):
    changes, message = HOSTILE_CARDS[case]
    card = json.loads(json.dumps(small_card(network=PYRAMID).to_dict()))
    for name, value in changes.items():
        is_part = isinstance(value, dict) and name in ('frontend', 'inference')
        card[name] = {**card[name], **value} if is_part else value
    torch.save(content_of(small_tagger(), card=json.dumps(card)), tmp_path / 'a.pt')
    assert message in error_of(tmp_path / 'a.pt')


LONG_CARDS = {
    'deep': ('{"recipe": ' + '[' * 100_000 + ']' * 100_000 + '}', 'is damaged'),
    'long': ('{"recipe": [' + '[],' * 1_500_000 + '1]}', 'wanted JSON of at most 2000000'),
    'no table': ('[1]', 'its card is a list'),
    'no text': (7, 'its card is int'),
}


@pytest.mark.parametrize('case', LONG_CARDS)
def test_a_card_that_is_no_short_table_of_json_is_refused(tmp_path, case):
    text, message = LONG_CARDS[case]
    content = content_of(small_tagger())
    torch.save({**content, 'card': text}, tmp_path / 'a.pt')
    assert message in error_of(tmp_path / 'a.pt')


def tensors_with(value, name='odd'):
    '''A checkpoint's content with a further tensor, which its digest cannot cover.'''
    content = content_of(small_tagger())
    return {**content, 'tensors': {**content['tensors'], name: value}}


HOSTILE_CONTENTS = {
    'a text': (lambda: tensors_with('x'), 'odd is a str'),
    'a number as a name': (lambda: tensors_with(torch.zeros(2), 1), "a tensor's name is a int"),
    'sparse': (lambda: tensors_with(torch.eye(3).to_sparse()), 'odd is sparse'),
    'on meta': (lambda: tensors_with(torch.zeros(3, device='meta')), 'odd is on the device meta'),
    'expanded': (lambda: tensors_with(torch.zeros(1).expand(10**6, 10**6)), 'odd is not contiguous'),
    'transposed': (lambda: tensors_with(torch.zeros(2, 3).T), 'odd is not contiguous'),
    'shared': (lambda: content_of(small_tagger(), tensors=dict.fromkeys('abcdef', torch.zeros(9999))), 'more than'),
    'a format of tensors': (lambda: content_of(small_tagger(), format=torch.zeros(2)), 'checkpoint format'),
    'a digest of tensors': (lambda: {**content_of(small_tagger()), 'digest': torch.zeros(3)}, 'damaged'),
    'names of tuples': (lambda: {((1,), 2): 3, 10**50: 4}, 'it holds: tuple, int'),
}


@pytest.mark.parametrize('case', HOSTILE_CONTENTS)
def test_contents_of_wrong_types_and_tensors_that_pretend_to_be_large_are_refused(tmp_path, case):
    make, message = HOSTILE_CONTENTS[case]
    torch.save(make(), tmp_path / 'a.pt')
    assert message in error_of(tmp_path / 'a.pt')


def write_archive(path, pickled=b'', method=zipfile.ZIP_STORED, parts=0):
    '''An archive with the parts that torch.save writes.'''
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, content in {'data.pkl': pickled, 'byteorder': 'little', 'version': '3'}.items():
            archive.writestr(f'a/{name}', content)
        for number in range(parts):
            archive.writestr(f'a/data/{number}', '')


def with_entries_repeated(path, times=50):
    '''Repeat the directory of an archive, so that its parts overlap.'''
    whole = path.read_bytes()
    count, size, start = struct.unpack('<HII', whole[-12:-2])
    directory, count = whole[start : start + size] * times, count * times
    end = b'PK\5\6' + struct.pack('<HHHHIIH', 0, 0, count, count, len(directory), start, 0)
    path.write_bytes(whole[:start] + directory + end)


BYTEARRAY = b'\x80\x02cbuiltins\nbytearray\n\x8a\x05' + (4 << 30).to_bytes(5, 'little') + b'\x85R.'
HOSTILE_PICKLES = {
    'a bytearray of 4 GB': (BYTEARRAY, 'it holds builtins bytearray'),
    'many lists': (b'\x80\x02(' + b']' * 1_100_000 + b't.', 'too many operations'),
    'deep keys': (b'\x80\x02})' + b'\x85' * 300_000 + b'K\x01s.', 'too many operations'),
    'a long pickle': (b'\x80\x02]' + b'0]' * (17 << 20) + b'.', 'its pickle is too long'),
    'a cut pickle': (b'\x80\x02]', 'cannot be read'),
}


@pytest.mark.parametrize('case', HOSTILE_PICKLES)
def test_a_pickle_that_would_fill_the_memory_is_refused_unread(tmp_path, case):
    pickled, message = HOSTILE_PICKLES[case]
    write_archive(tmp_path / 'a.pt', pickled)
    assert message in error_of(tmp_path / 'a.pt')


def test_an_archive_that_grows_when_it_is_read_is_refused(tmp_path):
    path = tmp_path / 'a.pt'
    write_archive(path, bytes(10**6), zipfile.ZIP_DEFLATED)
    assert 'it is compressed' in error_of(path)
    torch.save(content_of(small_tagger()), path)
    with_entries_repeated(path)
    assert 'its parts overlap' in error_of(path)
    with zipfile.ZipFile(path, 'w') as archive:
        for number in range(2000):
            archive.writestr(str(number).zfill(5000), '')
    assert 'too many parts' in error_of(path)


def test_a_card_that_could_not_be_loaded_again_is_not_saved(tmp_path):
    save_tagger(tmp_path / 'a.pt', small_tagger())
    good = (tmp_path / 'a.pt').read_bytes()
    with pytest.raises(KitError, match='wanted JSON of at most'):
        save_tagger(tmp_path / 'a.pt', small_tagger(recipe={'note': 'x' * 5_000_000}))
    assert (tmp_path / 'a.pt').read_bytes() == good


class Tied(CustomNetwork):
    '''A network that holds one layer under many names, in a view of a larger tensor.'''

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.head.weight = nn.Parameter(torch.randn(3000, 16)[:3])
        self.copies = nn.ModuleList([self.head] * 9)


def test_tied_weights_and_views_are_saved_by_themselves_and_come_back(tmp_path):
    network = Tied().eval()
    save_tagger(tmp_path / 'a.pt', wrap_network(network, FRONTEND, CLASSES))
    assert (tmp_path / 'a.pt').stat().st_size < 20_000
    loaded = load_tagger(tmp_path / 'a.pt', {'own': Tied})
    assert torch.equal(loaded.network.copies[8].weight, network.head.weight)


@pytest.mark.parametrize(
    ('setting', 'value', 'message'),
    [
        ('prevalences', [0.5], '3 classes need as many prevalences, got 1'),
        ('classes', ['a', 'a', 'b'], 'each once'),
        ('output', 'scores', 'choices are: probability, ranking'),
        ('from_the_future', 1, "no setting 'from_the_future'"),
    ],
)
def test_a_card_with_a_wrong_setting_is_refused_with_its_name(tmp_path, setting, value, message):
    card = {**small_card().to_dict(), setting: value}
    torch.save(content_of(small_tagger(), card=json.dumps(card)), tmp_path / 'a.pt')
    assert message in error_of(tmp_path / 'a.pt')


def test_a_custom_network_is_loaded_with_the_function_that_builds_it(tmp_path):
    network = CustomNetwork().eval()
    tagger = wrap_network(network, FRONTEND, CLASSES, name='mine', prevalences=(0.1, 0.2, 0.3), min_frames=7)
    assert tagger.card.network == {'family': 'custom:mine'} and tagger.card.prevalences == (0.1, 0.2, 0.3)
    path = tmp_path / 'a.pt'
    save_tagger(path, tagger)
    message = error_of(path)
    assert "networks={'mine': build}" in message and 'passed: none' in message
    assert 'passed: other' in error_of(path, {'other': CustomNetwork})
    loaded = load_tagger(path, {'other': nn.Identity, 'mine': CustomNetwork})
    assert loaded.min_frames == 7 and isinstance(loaded, Tagger)
    with torch.inference_mode():
        assert torch.equal(loaded(waves()), tagger(waves()))
    assert 'do not fit' in error_of(path, {'mine': lambda: CustomNetwork(classes=4)})
    with pytest.raises(KitError, match='networks must map names to functions'):
        load_tagger(path, CustomNetwork)


def test_a_wrapped_network_has_equal_prevalences_and_probabilities_unless_it_ranks():
    tagger = wrap_network(CustomNetwork(), FRONTEND, CLASSES)
    assert tagger.card.prevalences == (1 / 3,) * 3 and tagger.card.is_calibrated
    assert tagger.card.network == {'family': 'custom:own'} and tagger.min_frames == 1
    assert not wrap_network(CustomNetwork(), FRONTEND, CLASSES, output='ranking').card.is_calibrated


@pytest.mark.parametrize('convert', [torch.tensor, lambda x: torch.tensor(x).numpy(), list])
def test_prevalences_may_be_a_tensor_an_array_or_a_list(convert):
    prevalences = convert([0.5, 0.25, 0.0])
    tagger = wrap_network(CustomNetwork(), FRONTEND, CLASSES, prevalences=prevalences)
    assert tagger.card.prevalences == (0.5, 0.25, 0.0)


def test_a_network_of_the_kits_families_needs_its_settings_and_may_be_a_state_dict(tmp_path):
    tagger = small_tagger()
    for network in (tagger.network, tagger.network.state_dict()):
        save_tagger(tmp_path / 'a.pt', wrap_network(network, FRONTEND, CLASSES, settings=PYRAMID))
        with torch.inference_mode():
            assert torch.equal(load_tagger(tmp_path / 'a.pt')(waves()), tagger(waves()))
    with pytest.raises(KitError, match='do not fit'):
        wrap_network({'odd': torch.zeros(1)}, FRONTEND, CLASSES, settings=PYRAMID)
    with pytest.raises(KitError, match="did you mean 'max-pyramid'"):
        wrap_network({}, FRONTEND, CLASSES, settings={'family': 'max-pyramyd'})
    with pytest.raises(KitError, match=r"a plain state dict needs settings=\{'family'"):
        wrap_network(tagger.network.state_dict(), FRONTEND, CLASSES)


def test_checkpoints_are_found_once_each_and_sorted(tmp_path):
    for name in ('fold_1.pt', 'fold_0.pt', 'other.pt', 'odd[1].pt'):
        (tmp_path / name).touch()
    (tmp_path / 'fold_2.pt').mkdir()

    def names(*patterns):
        return [path.name for _, path in find_models(patterns)]

    assert names(f'{tmp_path}/fold_*.pt') == ['fold_0.pt', 'fold_1.pt']
    every = ['other.pt', 'fold_0.pt', 'fold_1.pt', 'odd[1].pt']
    assert names(tmp_path / 'other.pt', f'{tmp_path}/*.pt') == every
    assert names(tmp_path / 'odd[1].pt') == ['odd[1].pt']
    (tmp_path / 'runs [1]' / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'runs [1]' / 'a' / 'b' / 'fold_0.pt').touch()
    (tmp_path / 'runs 1').mkdir()
    (tmp_path / 'runs 1' / 'fold_1.pt').touch()
    assert names(f'{tmp_path}/runs [1]/*/b/fold_*.pt') == names(f'{tmp_path}/runs [1]/**/*.pt') == ['fold_0.pt']
    assert names(f'{tmp_path}/runs [12]/fold_*.pt') == ['fold_1.pt']
    with pytest.raises(KitError, match=r'no checkpoint matches .*fold_\*\.pth'):
        names(f'{tmp_path}/fold_*.pth')
    with pytest.raises(KitError, match=r'no checkpoints given: e\.g\. --checkpoints'):
        names()
