'''Definitions of the metrics, slow and plain or scikit-learn's, NaN where there is none.'''

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score


def rank_of(row, scores, k):
    '''The known labels of a row with at least the score of label k.'''
    return np.flatnonzero(~np.isnan(row) & (scores >= scores[k]))


def slow_lwlrap(truth, scores):
    '''The mean over true labels of the share of true labels among the known ones with at least their score.'''
    precisions = []
    for row, score in zip(truth, scores, strict=True):
        for k in np.flatnonzero(row == 1):
            precisions.append((row[rank_of(row, score, k)] == 1).mean())
    return np.mean(precisions) if precisions else np.nan


def slow_lwlrap_flat(truth, scores):
    '''lwlrap of one list of all known labels.'''
    return slow_lwlrap(truth.reshape(1, -1), scores.reshape(1, -1))


def slow_map3(truth, scores):
    '''The mean over clips with a true label of the average precision of the three highest-scoring labels.'''
    values = []
    for row, score in zip(truth, scores, strict=True):
        ranks = [rank_of(row, score, k) for k in np.flatnonzero(row == 1)]
        hits = [(row[rank] == 1).mean() for rank in ranks if len(rank) <= 3]
        if ranks:
            values.append(sum(hits) / min(len(ranks), 3))
    return np.mean(values) if values else np.nan


def slow_top1(truth, scores):
    '''The probability that one of the highest-scoring known classes, drawn at random, is true.'''
    hits = []
    for row, score in zip(truth, scores, strict=True):
        known = ~np.isnan(row)
        if (row == 1).any():
            highest = score[known].max()
            hits.append((row[known & (score == highest)] == 1).mean())
    return np.mean(hits) if hits else np.nan


def slow_micro_f1(truth, scores):
    '''scikit-learn's F1 of samples, at 0.5, without unknown labels.'''
    known = ~np.isnan(truth)
    rows = known.any(axis=1)
    if not rows.any():
        return np.nan
    true, predicted = (truth == 1)[rows], ((scores >= 0.5) & known)[rows]
    return f1_score(true, predicted, average='samples', zero_division=1)


def mean_of_classes(value, truth, scores, needs_false=False):
    '''The mean of a class's value over the classes with a true and, if needed, a false label.'''
    values = []
    for labels, of_class in zip(truth.T, scores.T, strict=True):
        known = ~np.isnan(labels)
        if (labels == 1).any() and not (needs_false and (labels[known] == 1).all()):
            values.append(value(labels[known], of_class[known]))
    return np.mean(values) if values else np.nan


def slow_macro_f1(truth, scores):
    '''The mean of scikit-learn's F1 of each class at 0.5.'''
    return mean_of_classes(lambda labels, of_class: f1_score(labels, of_class >= 0.5), truth, scores)


def slow_padded_cmap(truth, scores):
    '''The mean average precision of all classes with five rows of ones.'''
    ones = np.ones((5, truth.shape[1]))
    return mean_of_classes(average_precision_score, np.vstack([truth, ones]), np.vstack([scores, ones]))


def slow_macro_auc(truth, scores):
    return mean_of_classes(roc_auc_score, truth, scores, needs_false=True)


def slow_macro_ap(truth, scores):
    return mean_of_classes(average_precision_score, truth, scores)


SLOW_METRICS = {
    'lwlrap': slow_lwlrap,
    'lwlrap_flat': slow_lwlrap_flat,
    'macro_auc': slow_macro_auc,
    'macro_ap': slow_macro_ap,
    'padded_cmap': slow_padded_cmap,
    'macro_f1': slow_macro_f1,
    'micro_f1': slow_micro_f1,
    'map3': slow_map3,
    'top1': slow_top1,
}
