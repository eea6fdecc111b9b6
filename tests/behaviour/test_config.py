'''Settings are checked when they are created, survive JSON, and a wrong name gets an answer with the right ones.'''

import dataclasses
import json
import re
import typing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from kit.audio.frontend import FrontendConfig
from kit.core.config import Config, read_value, setting
from kit.core.errors import KitError, choose, suggest
from kit.infer.stack import StackCard, StackerConfig
from kit.labels.calibration import Calibration
from kit.models.families import FAMILIES
from kit.models.tagger import TaggerCard
from kit.train.optim import OptimConfig
from kit.train.pseudo_labels import SelfTrainingConfig
from kit.train.recipe import Recipe, SourceConfig
from kit.train.recipes import RECIPES, SMALL, find_recipe


@dataclass(frozen=True)
class Inner(Config):
    '''A group of settings.'''

    depth: int = setting(3, 'how deep', low=1, high=9)
    kinds: tuple[str, ...] = setting(('a',), 'what kinds', choices=('a', 'b'))


@dataclass(frozen=True)
class Outer(Config):
    '''Settings of every type.'''

    name: str = setting('x', 'a name')
    rate: float = setting(0.5, 'a share', low=0.0, high=1.0)
    count: int | None = setting(None, 'a number or none', low=2)
    fast: bool = setting(False, 'a switch')
    inner: Inner = setting(Inner(), 'a group')
    spare: Inner | None = setting(None, 'a group or none')
    free: dict[str, Any] = dataclasses.field(default_factory=dict, metadata={'help': 'anything'})

    def check(self) -> None:
        if self.fast and self.rate > 0.9:
            raise KitError('rate must be at most 0.9 where fast is set.')


EXAMPLES = [
    Outer(),
    Outer(name='ünï', rate=0.25, count=2, fast=True, inner=Inner(depth=9, kinds=('b', 'a'))),
    Outer(spare=Inner(depth=1), free={'k': [1, {'z': None}], 'w': 0.1}),
]


@pytest.mark.parametrize('config', [*EXAMPLES, *RECIPES.values()], ids=lambda config: type(config).__name__)
def test_settings_survive_json(config):
    again = type(config)(**json.loads(json.dumps(config.to_dict())))
    assert again == config and again.canonical_json() == config.canonical_json()


def test_equal_settings_have_equal_digests_and_others_differ():
    assert Outer(rate=1).canonical_json() == Outer(rate=1.0).canonical_json()
    digests = {config.canonical_json() for config in (*EXAMPLES, Outer(rate=0.25), Outer(inner=Inner(depth=4)))}
    assert len(digests) == len(EXAMPLES) + 2


def test_settings_cannot_be_changed_and_share_nothing():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Outer().name = 'y'
    assert Outer().free is not Outer().free


def test_values_take_the_type_of_their_setting():
    config = Outer(rate=1, inner={'depth': 2, 'kinds': ['b']}, spare={'depth': 5})
    assert isinstance(config.rate, float)
    assert config.inner == Inner(2, ('b',)) and config.spare == Inner(5)
    bands = np.array([[100.0, 900.0], [500.0, 2000.0]])
    assert FrontendConfig(bands_hz=bands, n_mels=4).bands_hz == ((100.0, 900.0), (500.0, 2000.0))
    with pytest.raises(KitError, match='wants'):
        FrontendConfig(bands_hz=np.float32(3.0))


WRONG = [
    ({'name': 3}, r'Outer\.name wants str, got 3 \(int\)'),
    ({'rate': True}, r'Outer\.rate wants float, got True'),
    ({'count': 2.5}, r'Outer\.count wants int, got 2\.5'),
    ({'rate': 1.5}, r'Outer\.rate must be at most 1\.0, got 1\.5: a share'),
    ({'rate': float('nan')}, r'Outer\.rate must be at least 0\.0, got nan'),
    ({'inner': {'depth': 10}}, r'Inner\.depth must be at most 9, got 10: how deep'),
    ({'inner': {'kinds': ['a', 'c']}}, r"Inner\.kinds is 'c'.*a, b"),
    ({'inner': {'kinds': 'a'}}, r"Inner\.kinds wants a list, got 'a'"),
    ({'inner': {'dept': 2}}, r"Inner has no setting 'dept': did you mean 'depth'\?.*: depth, kinds"),
    ({'free': 3}, r'Outer\.free wants a table'),
    ({'fast': True, 'rate': 0.95}, r'at most 0\.9 where fast is set'),
]


@pytest.mark.parametrize('values, message', WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_value_is_refused_with_what_came_and_what_is_wanted(values, message):
    with pytest.raises(KitError, match=message):
        Outer(**values)


def config_classes(*classes):
    '''The classes of settings, and those of their groups.'''
    found = []
    for config in classes:
        kinds = [item.default for item in dataclasses.fields(config) if isinstance(item.default, Config)]
        found += [config, *config_classes(*map(type, kinds))]
    return found


BOUNDED = {
    config.__name__: config
    for config in config_classes(
        TaggerCard, StackCard, Calibration, Recipe, SourceConfig,
        *FAMILIES.values(), StackerConfig,
    )
    if config not in (OptimConfig, SelfTrainingConfig)  # no checkpoint is built from them
}  # fmt: skip


@pytest.mark.parametrize('name', BOUNDED)
def test_every_number_of_a_card_has_bounds_which_its_infinity_and_its_huge_integers_exceed(name):
    config = BOUNDED[name]
    hints = typing.get_type_hints(config)
    for item in dataclasses.fields(config):
        kinds = re.findall(r'\b(?:int|float)\b', str(hints[item.name]).replace('Any', ''))
        if not kinds or item.metadata.get('choices'):
            continue
        low, high = item.metadata.get('low'), item.metadata.get('high')
        assert low is not None and high is not None, f'{name}.{item.name} needs a low and a high'
        value = 10**400
        for _ in range(str(hints[item.name]).count('tuple[')):
            value = [value]
        with pytest.raises(KitError, match=rf'{item.name} must be at most'):
            config(**{item.name: value})


def test_a_list_is_no_longer_than_its_setting_allows_and_its_inner_lists_are_short():
    @dataclass(frozen=True)
    class Lists(Config):
        few: tuple[int, ...] = setting((), 'a few', high=9, longest=3)
        many: tuple[str, ...] = ()
        pairs: tuple[tuple[float, ...], ...] = setting((), 'pairs', low=0, high=9)

    assert Lists(few=(1, 2, 3), many=('a',) * 100_000, pairs=[[1, 2]] * 99).pairs[98] == (1.0, 2.0)
    wrong = {'few': [1] * 4, 'many': ['a'] * 100_001, 'pairs': [[1] * 17]}
    for name, value in wrong.items():
        with pytest.raises(KitError, match=rf'Lists\.{name} must have at most (3|100000|16) items, got'):
            Lists(**{name: value})
    with pytest.raises(KitError, match=r'Lists\.pairs must be at most 9, got 10\.0'):
        Lists(pairs=[[1, 2], [1, 10]])


def test_a_long_value_is_cut_in_the_error():
    with pytest.raises(KitError) as caught:
        Outer(rate=list(range(100_000)))
    assert len(str(caught.value)) < 200 and 'got [0, 1, 2' in str(caught.value)


def test_overrides_reach_every_depth_and_leave_the_original_alone():
    config = Outer(free={'k': {'z': 1}})
    changed = config.override(
        ['name=quick', 'rate=0.1', 'rate=0.75', 'count=4', 'fast=True', 'inner.depth=5', 'inner.kinds=["b"]']
    )
    assert changed == Outer('quick', 0.75, 4, True, Inner(5, ('b',)), free={'k': {'z': 1}})
    assert config.override(['free.k.z=2']).free == {'k': {'z': 2}}
    assert config == Outer(free={'k': {'z': 1}})
    assert Outer(count=4).override(['count=None']) == Outer().override(['count=null']) == Outer()
    assert Outer().override([' inner.depth = 7']).inner.depth == 7
    assert Outer().override(['name=a=b']).name == 'a=b'


WRONG_OVERRIDES = {
    'rate': r"an override is key=value, got 'rate', e\.g\. epochs=20",
    'rat=1': r"no setting 'rat': did you mean rate\? .*`recipes NAME`",
    'depth=1': r"no setting 'depth': did you mean inner\.depth\?",
    'inner.deph=1': r"no setting 'inner\.deph': did you mean inner\.depth\?",
    'inner.zzz=1': r"no setting 'inner\.zzz': the choices are: depth, kinds\.",
    'iner.kind=1': r"no setting 'iner\.kind': did you mean inner\.kinds\?",
    'count_of_all=1': r"no setting 'count_of_all': did you mean count\?",
    'name.first=1': r"no setting 'name\.first'",
    'zzz=1': r"no setting 'zzz': the choices are: count, fast, free, inner, name, rate, spare\.",
    '=3': r"no setting ''",
    'inner.depth=10': r'Inner\.depth must be at most 9',
}


@pytest.mark.parametrize('assignment', WRONG_OVERRIDES)
def test_a_wrong_override_names_the_nearest_settings_at_any_depth(assignment):
    with pytest.raises(KitError, match=WRONG_OVERRIDES[assignment]):
        Outer().override([assignment])


@pytest.mark.parametrize(
    'name, right',
    [
        ('n_mels', 'frontend.n_mels'),
        ('crop_length', 'crop_s'),
        ('mels', 'frontend.n_mels'),
        ('lr', 'optim.lr_peak'),
        ('network.famliy', 'network.family'),
        ('frontend.hop', 'frontend.hop_length'),
    ],
)
def test_a_wrong_setting_of_a_recipe_finds_the_one_that_was_meant(name, right):
    with pytest.raises(KitError) as caught:
        find_recipe('max-pyramid-mel', overrides=[f'{name}=3'])
    guesses = str(caught.value).partition('did you mean ')[2].partition('?')[0].split(', ')
    assert right in guesses and len(guesses) <= 3


def test_a_value_is_json_where_it_can_be_and_else_text():
    values = {'1': 1, '1.5': 1.5, 'true': True, 'False': False, 'null': None, 'None': None, '[1, 2]': [1, 2]}
    texts = {'"7"': '7', '55m': '55m', '': '', 'a b': 'a b', '{bad': '{bad'}
    for text, value in (values | texts).items():
        assert read_value(text) == value and type(read_value(text)) is type(value)


def test_the_most_similar_choice_comes_first_and_none_is_a_word():
    assert suggest('lsepp', ['bce', 'lsep']) == "did you mean 'lsep'? the choices are: bce, lsep"
    assert suggest('zzz', ['b', 'a']) == 'the choices are: a, b'
    assert suggest('x', []) == 'the choices are: none'
    assert choose('loss', 'bce', {'bce': 1}) == 1
    with pytest.raises(KitError, match=r"unknown loss 'bec': did you mean 'bce'\? the choices are: bce\."):
        choose('loss', 'bec', {'bce': 1})


@pytest.mark.parametrize('name', RECIPES)
def test_named_recipes_have_a_source_a_small_variant_and_take_overrides(name):
    recipe = find_recipe(name)
    small = find_recipe(name, small=True)
    assert recipe.name == name and recipe.source
    assert name in SMALL and small != recipe and small.epochs < recipe.epochs
    changed = find_recipe(
        name, True, ['epochs=5', 'no_augment_epochs=1', 'frontend.n_fft=4096', 'network.head.dropout=0.3']
    )
    assert changed.frontend.n_fft == 4096 and changed.network['head']['dropout'] == 0.3
    with pytest.raises(KitError, match='learning rate'):
        find_recipe(name, overrides=['optim.lr_start=1.0'])
    assert (recipe.mixup.p > 0 and recipe.mixup.domain == 'energy') == ('pyramid' in name)
    energy = [] if 'pyramid' in name else ['mixup.p=0.5', 'mixup.domain=energy']
    with pytest.raises(KitError, match=r'frontend\.normalize=none, or mixup\.p=0'):
        find_recipe(name, overrides=[*energy, 'frontend.normalize=clip'])


def test_librosas_names_are_answered_with_the_kit_s():
    for name, own_name in (('fmin', 'f_min_hz'), ('sr', 'sample_rate'), ('htk', 'mel_scale'), ('fmax', 'f_max_hz')):
        with pytest.raises(KitError, match=f"did you mean '{own_name}'"):
            FrontendConfig(**{name: 1})
    with pytest.raises(KitError, match=r'did you mean frontend\.f_min_hz'):
        find_recipe('sed', overrides=['frontend.fmin=50'])
    assert FrontendConfig(power=2.0).power == 2
