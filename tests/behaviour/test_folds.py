'''Every class is spread evenly over the folds, and no group is in two of them.'''

import itertools

import numpy as np
import pandas as pd
import pytest

from kit.core.errors import KitError
from kit.labels.folds import check_no_leak, make_folds, stratify_groups


def skewed_table(n_rows, n_classes, n_groups=None, seed=0):
    '''Clips with up to three labels; some classes are a hundred times rarer than others.'''
    generator = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, n_classes + 1)
    names = np.array([f'c{k:02d}' for k in range(n_classes)])
    labels = [
        ','.join(generator.choice(names, generator.integers(0, 4), replace=False, p=share / share.sum()))
        for _ in range(n_rows)
    ]
    table = pd.DataFrame({'fname': [f'{i:05d}.wav' for i in range(n_rows)], 'labels': labels})
    if n_groups:
        table['recording'] = [f'r{g}' for g in generator.integers(0, n_groups, n_rows)]
    return table


def fold_counts(table, folds):
    '''Count the clips of every class in every fold. Shape: (K, n_folds)'''
    pairs = table.assign(fold=folds, label=table['labels'].str.split(',')).explode('label')
    pairs = pairs[pairs['label'] != '']
    return pd.crosstab(pairs['label'], pairs['fold']).to_numpy()


def test_every_class_is_spread_evenly():
    table = skewed_table(3000, 40)
    folds = make_folds(table, 5)
    counts = fold_counts(table, folds)
    distance = np.abs(counts - counts.mean(1, keepdims=True))
    assert distance.max() <= 5 and distance.mean() < 1
    assert np.ptp(np.bincount(folds, minlength=5)) <= 2


def test_single_labels_are_spread_as_evenly_as_whole_clips_can_be():
    table = pd.DataFrame({'fname': [f'{i}' for i in range(103)], 'labels': list('abcdefg' * 20)[:103]})
    table.loc[:2, 'labels'] = 'rare'
    counts = fold_counts(table, make_folds(table, 4))
    assert np.ptp(counts, axis=1).max() <= 1


def test_groups_stay_whole_and_classes_stay_even():
    table = skewed_table(3000, 20, n_groups=600)
    folds = make_folds(table, 5, group_column='recording')
    assert table.assign(fold=folds).groupby('recording')['fold'].nunique().max() == 1
    # Random folds of groups are three to four times as uneven.
    counts = fold_counts(table, folds)
    assert np.abs(counts / counts.sum(1, keepdims=True) - 1 / 5).mean() < 0.008
    assert np.ptp(np.bincount(folds)) < 0.02 * len(table)


def test_folds_are_near_the_best_of_all_possible_ones():
    generator = np.random.default_rng(3)
    excess = []
    for _ in range(20):
        counts = generator.integers(0, 3, (9, 3))
        sizes = counts.max(1) + generator.integers(0, 2, 9)

        def cost(folds, counts=counts):
            in_first_fold = counts[np.asarray(folds) == 0].sum(0)
            return float(np.abs(2 * in_first_fold - counts.sum(0)).sum())

        all_costs = [cost(folds) for folds in itertools.product(range(2), repeat=9)]
        found = cost(stratify_groups(counts, sizes, 2))
        excess.append((found - min(all_costs)) / (np.mean(all_costs) - min(all_costs)))
    assert np.mean(excess) < 0.2


@pytest.mark.parametrize('column', [None, 'recording'])
def test_the_same_seed_gives_the_same_folds_in_any_order_of_rows(column):
    table = skewed_table(500, 10, n_groups=100)
    folds = make_folds(table, 5, seed=7, group_column=column)
    assert (folds != make_folds(table, 5, seed=8, group_column=column)).any()
    order = np.random.default_rng(0).permutation(len(table))
    shuffled = make_folds(table.iloc[order], 5, seed=7, group_column=column)
    np.testing.assert_array_equal(folds[order], shuffled)


def test_clips_and_groups_without_labels_even_out_the_sizes():
    unlabelled = pd.DataFrame({'fname': [f'bare{i}' for i in range(100)], 'labels': ''})
    both = pd.concat([skewed_table(200, 5), unlabelled])
    assert np.ptp(np.bincount(make_folds(both, 4))) <= 1
    sizes = np.array([30, 20, 10] + [1] * 30)
    folds = stratify_groups(np.zeros((33, 0), dtype=int), sizes, 3)
    assert np.bincount(folds, weights=sizes).tolist() == [30, 30, 30]


def test_an_empty_group_is_no_group():
    table = skewed_table(60, 4)
    table['recording'] = [''] * 20 + [None] * 20 + ['r1', 'r1 '] * 10
    folds = make_folds(table, 3, group_column='recording')
    assert len(set(folds[40:])) == 1
    assert len(set(folds[:40])) > 1


def test_rows_that_are_linked_by_clips_and_groups_share_a_fold():
    '''Rows 24 to 29 are of the groups r8 and r9; clips 0 and 1, of these groups too, are also rows without a group.'''
    table = skewed_table(60, 4)
    table['recording'] = [''] * 60
    grouped = table.iloc[:30].assign(recording=[f'r{i // 3}' for i in range(30)])
    linked = table.iloc[:2].assign(recording=['r8', 'r9'])
    both = pd.concat([table, grouped, linked])
    for seed in range(3):
        folds = make_folds(both, 4, seed=seed, group_column='recording')
        assert both.assign(fold=folds).groupby('fname')['fold'].nunique().max() == 1
        check_no_leak(folds, both['recording'])
        assert len({folds[0], *folds[24:30]}) == 1
        assert len(set(folds)) == 4


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'n_folds': 1}, 'at least 2'),
        ({'n_folds': 11}, '11 folds .* 10'),
        ({'n_folds': 3, 'group_column': 'recording'}, '3 folds .* 2 in 10 rows'),
        ({'group_column': 'recordin'}, "did you mean 'recording'"),
    ],
)
def test_impossible_folds_are_refused(arguments, words):
    table = pd.DataFrame({'fname': list('abcdefghij'), 'labels': 'x', 'recording': ['r', 's'] * 5})
    with pytest.raises(KitError, match=words):
        make_folds(table, **arguments)
    with pytest.raises(KitError, match='labels'):
        make_folds(table.drop(columns='labels'))


def test_a_leak_is_named():
    check_no_leak([0, 0, 1, 1], ['a', 'a', 'b', 'b'])
    check_no_leak([0, 1, 0, 1], ['', '', None, float('nan')])
    with pytest.raises(KitError, match=r"'b' lies in fold 0 and in fold 1 \(1 of 2"):
        check_no_leak(np.array([0, 0, 1]), ['a', 'b', 'b'])
