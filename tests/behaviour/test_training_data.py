"""What a run learns from: sources, stretches, boxes, soft labels, and what of it is scored."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.labels.boxes import read_boxes, recording_labels
from kit.labels.metrics import lwlrap
from kit.labels.soft import SoftLabels, write_soft_labels
from kit.labels.table import clip_labels, label_targets, read_clip_table, scored_truth, stretches_of
from kit.models.checkpoint import load_tagger
from kit.train.dataset import box_table, cut_stretch, load_dataset, source_places
from kit.train.oof import predict_oof
from kit.train.run import choose_folds, run_files
from tests.behaviour.test_train import (
    CLASSES,
    TINY,
    make_set,
    same_bits,
    train_quietly,
    weights_of,
    write_clip,
)

pytestmark = pytest.mark.usefixtures("one_core")

CPU = torch.device("cpu")
BCE = replace(TINY, loss="bce", epochs=1, no_augment_epochs=0, validate_every=1)
SOURCED = replace(BCE, sources={"noisy": {"scored": False}, "clean": {}, "also": {}})


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Fourteen clips and their table."""
    return make_set(tmp_path_factory.mktemp("toy"))


def table_of(path, toy, **columns):
    """The toy table with further columns, written and read."""
    pd.read_csv(toy[0]).assign(**columns).to_csv(path, index=False)
    return path


def heard(recipe, table, audio, **more):
    """What a run learns from."""
    frame = read_clip_table(table)
    return load_dataset(recipe, frame, np.asarray(frame["fold"]), audio, CPU, 1, False, **more)


def rows_csv(path, *lines):
    """A CSV of lines."""
    path.write_text("\n".join(lines) + "\n")
    return path


# Sources


def test_labels_of_unscored_sources_are_unknown_to_validation_alone():
    frame = pd.DataFrame(
        {"fname": list("abcd"), "labels": ["x", "y", "x", "y"], "source": ["n", "c", "", "n"]}
    )
    labels = clip_labels(frame)
    truth = scored_truth(labels, {"n": {"scored": False}, "c": {"scored": True}})
    assert np.isnan(truth).all(axis=1).tolist() == [True, False, False, True]
    np.testing.assert_array_equal(truth[[1, 2]], labels.targets[[1, 2]])
    np.testing.assert_array_equal(scored_truth(labels, {}), labels.targets)
    assert not np.isnan(labels.targets).any() and truth.dtype == np.float32


def test_a_row_without_a_source_is_of_the_first_scored_one_and_an_unknown_source_is_an_error():
    frame = pd.DataFrame({"fname": list("abc"), "labels": list("xyx"), "source": ["also", "", "noisy"]})
    assert source_places(clip_labels(frame), SOURCED).tolist() == [2, 1, 0]
    assert source_places(clip_labels(frame.drop(columns="source")), SOURCED).tolist() == [1, 1, 1]
    assert source_places(clip_labels(frame), BCE) is None
    with pytest.raises(KitError, match=r"the table has a source 'claen': did you mean 'clean'"):
        source_places(clip_labels(frame.assign(source="claen")), SOURCED)


def test_unscored_sources_are_learnt_from_and_predicted_and_do_not_change_the_score(toy, tmp_path):
    noisy = np.arange(14) >= 8
    table = table_of(tmp_path / "table.csv", toy, source=np.where(noisy, "noisy", "clean"))
    run = train_quietly(SOURCED, table, toy[1], tmp_path / "run")
    truth = label_targets(read_clip_table(table)["labels"], CLASSES)
    assert run.oof.names == tuple(f"{i:02d}.wav" for i in range(14))
    assert np.isnan(run.oof.truth[noisy]).all() and np.isfinite(run.oof.probabilities).all()
    assert run.oof.lwlrap == pytest.approx(lwlrap(truth[~noisy], run.oof.probabilities[~noisy]))
    again = predict_oof(run.folder, toy[1], "cpu", 1, False)
    assert again.lwlrap == pytest.approx(run.oof.lwlrap, abs=1e-6)
    np.testing.assert_array_equal(again.truth, run.oof.truth)
    for fold in (0, 1):
        rows = ~noisy & (np.arange(14) % 2 != fold)
        card = load_tagger(run.folder / f"fold_{fold}.pt").card
        np.testing.assert_allclose(card.prevalences, truth[rows].mean(axis=0), rtol=1e-6)
        held = ~noisy & (np.arange(14) % 2 == fold)
        assert card.oof_score == pytest.approx(lwlrap(truth[held], run.oof.probabilities[held]), abs=1e-6)
    data = heard(SOURCED, table, toy[1])
    clips = data.train_split(0)
    assert len(clips.specs) == 7 and sorted(clips.sources.tolist()) == [0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(clips.targets, truth[1::2])


def test_fold_minus_one_is_learnt_from_by_all_and_held_out_by_none(toy, tmp_path):
    table = table_of(tmp_path / "table.csv", toy, fold=[-1, -1, -1, -1, *([0, 1] * 5)])
    data = heard(BCE, table, toy[1])
    for fold in (0, 1):
        assert len(data.train_split(fold).specs) == 9 and data.held_out(fold).tolist() == [
            *range(4 + fold, 14, 2)
        ]
    assert len(data.train_split(None).specs) == 14 and data.held_out(None).tolist() == []


# Soft labels


def test_soft_labels_of_clips_fill_what_is_unknown_and_nothing_else(toy, tmp_path):
    """Law 5: no known label is replaced, validation counts none of them, a clip with nothing known learns by them."""
    labels, false = ["high", "low", ""] + ["high"] * 11, ["low", "", ""] + ["low,noisy"] * 11
    table = table_of(tmp_path / "table.csv", toy, labels=labels, false_labels=false)
    soft = SoftLabels(("00.wav", "02.wav"), CLASSES, np.array([[0.2, 0.3, 0.4], [0.5, np.nan, 0.7]]))
    data = heard(BCE, table, toy[1], soft=soft)
    np.testing.assert_array_equal(
        data.targets[:3], np.float32([[1, 0, 0.4], [np.nan, 1, np.nan], [0.5, np.nan, 0.7]])
    )
    np.testing.assert_array_equal(
        data.truth[:3], np.float32([[1, 0, np.nan], [np.nan, 1, np.nan], [np.nan] * 3])
    )
    names = data.train_split(1).names
    assert "02.wav" in names and "02.wav" not in heard(BCE, table, toy[1]).train_split(1).names
    path = tmp_path / "soft.csv"
    write_soft_labels(path, soft)
    run = train_quietly(BCE, table, toy[1], tmp_path / "run", soft=path)
    assert np.isnan(run.oof.truth[2]).all() and np.isfinite(run.oof.probabilities[2]).all()
    write_soft_labels(path, replace(soft, targets=soft.targets * 0.5))
    with pytest.raises(KitError, match=r"labels\.json belongs to another run"):
        train_quietly(BCE, table, toy[1], tmp_path / "run", soft=path)


def test_clips_of_which_only_windows_are_told_are_learnt_from(toy, tmp_path):
    table = table_of(
        tmp_path / "table.csv", toy, labels=["", "", *["high"] * 12], false_labels=["", "", *["low"] * 12]
    )
    begin = np.array([0.0, 0.1])
    soft = SoftLabels(("00.wav", "00.wav"), CLASSES, np.full((2, 3), 0.5), begin, begin + 0.1)
    names = heard(BCE, table, toy[1], soft=soft).train_split(1).names
    assert "00.wav" in names and "01.wav" not in names


# Stretches


def write_stretched(folder, toy):
    """The toy table with the clips 0, 1, 2 whole, and stretches of 0 and 1 beside."""
    frame = pd.read_csv(toy[0]).assign(begin_s="", end_s="")
    extra = frame.iloc[[0, 0, 1]].assign(
        begin_s=["0", "0.1", "0.05"], end_s=["0.1", "0.2", "9"], labels="noisy"
    )
    pd.concat([frame, extra]).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def test_stretches_are_cut_where_they_say(toy, tmp_path):
    table = write_stretched(tmp_path, toy)
    waves = replace(BCE, wave_augment=replace(BCE.wave_augment, gain_p=0.5))
    data, per_s = heard(waves, table, toy[1]), BCE.frontend.frames_per_s
    frame = read_clip_table(table)
    assert stretches_of(frame)[:3].tolist() == [[0.0, math.inf]] * 3
    assert stretches_of(frame)[14:].tolist() == [[0.0, 0.1], [0.1, 0.2], [0.05, 9.0]]
    for row, (clip, begin, end) in {14: (0, 0, 0.1), 15: (0, 0.1, 0.2), 16: (1, 0.05, 9)}.items():
        assert torch.equal(data.specs[row], data.specs[clip][:, round(begin * per_s) : round(end * per_s)])
        assert torch.equal(data.waves[row], data.waves[clip][:, round(begin * 8000) : round(end * 8000)])
        last = min(end, data.seconds[clip])
        assert data.seconds[row] == pytest.approx(last - begin)
    assert data.stretches.tolist() == [False] * 14 + [True] * 3
    assert cut_stretch(torch.zeros(2, 10), (5.0, 6.0), 1.0).shape == (2, 1)
    assert cut_stretch(torch.zeros(2, 10), (50.0, 60.0), 1.0).shape == (2, 1)
    assert cut_stretch(torch.zeros(2, 10), (3.1, 3.2), 1.0).shape == (2, 1)


def test_stretches_are_learnt_from_only_and_never_by_the_fold_of_their_clip(toy, tmp_path):
    """Law 4."""
    table = write_stretched(tmp_path, toy)
    data = heard(BCE, table, toy[1])
    for fold in (0, 1):
        clips = data.train_split(fold)
        assert sorted(clips.names) == sorted(data.names[i] for i in range(17) if data.folds[i] != fold)
        assert set(clips.names).isdisjoint(data.names[i] for i in data.held_out(fold))
        assert data.held_out(fold).tolist() == [*range(fold, 14, 2)]
    assert len(data.train_split(0).specs) == 8 and len(data.train_split(1).specs) == 9
    run = train_quietly(BCE, table, toy[1], tmp_path / "run")
    assert run.oof.names == tuple(f"{i:02d}.wav" for i in range(14))
    again = predict_oof(run.folder, toy[1], "cpu", 1, False)
    np.testing.assert_allclose(again.probabilities, run.oof.probabilities, atol=1e-5)
    resumed = train_quietly(BCE, run.folder / "folds.csv", toy[1], tmp_path / "run")
    assert resumed.oof.lwlrap == pytest.approx(run.oof.lwlrap)
    frame = read_clip_table(table)
    folds = np.asarray(frame["fold"]).copy()
    folds[14] = 1
    with pytest.raises(KitError, match=r"group '00.wav' lies in fold 0 and in fold 1"):
        choose_folds(frame.assign(fold=folds), BCE, None)
    made = choose_folds(frame.drop(columns="fold"), BCE, None)
    assert made[14] == made[15] == made[0] and made[16] == made[1]


def test_a_table_with_stretches_reads_as_it_was_written(toy, tmp_path):
    frame = read_clip_table(write_stretched(tmp_path, toy))
    text = run_files(BCE, frame, np.asarray(frame["fold"]))["folds.csv"]
    (tmp_path / "again.csv").write_text(text)
    pd.testing.assert_frame_equal(read_clip_table(tmp_path / "again.csv"), frame)
    assert "inf" not in text


WRONG_STRETCHES = [
    ("fname,labels,begin_s,end_s", "a,x,1,1", "no stretch"),
    ("fname,labels,begin_s,end_s", "a,x,2,1", "no stretch"),
    ("fname,labels,begin_s,end_s", "a,x,2,", "no stretch"),
    ("fname,labels,begin_s,end_s", "a,x,-1,1", "begin_s is '-1', wanted seconds"),
    ("fname,labels,begin_s,end_s", "a,x,nan,1", "begin_s is 'nan', wanted seconds"),
    ("fname,labels,begin_s,end_s", "a,x,0,1\na,x,0,1", "line 3.*stands above already"),
    ("fname,labels,begin_s,end_s", "a,x,,\na,x,,", "line 3.*stands above already"),
    ("fname,labels,begin_s", "a,x,0", "begin_s or end_s, not both"),
]


@pytest.mark.parametrize("header, lines, words", WRONG_STRETCHES)
def test_what_is_no_stretch_is_an_error_that_names_its_line(tmp_path, header, lines, words):
    with pytest.raises(KitError, match=words):
        read_clip_table(rows_csv(tmp_path / "table.csv", header, lines))


# Boxes

BOX_COLUMNS = "recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max"


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Eight recordings of 1.5 s: their folder, the files of true and of false boxes, and folds."""
    folder, rng = tmp_path_factory.mktemp("field"), np.random.default_rng(3)
    (folder / "clips").mkdir()
    true, false = [BOX_COLUMNS], [BOX_COLUMNS]
    for i in range(8):
        write_clip(folder / "clips" / f"r{i}.wav", CLASSES[i % 3 : i % 3 + 1], 1.5, rng)
        if i < 7:
            true.append(f"r{i},{i % 3},1,0.2,100,0.6,3500")
            false.append(f"r{i},{(i + 1) % 3},1,0.7,100,1.1,3500")
    paths = rows_csv(folder / "true.csv", *true), rows_csv(folder / "false.csv", *false)
    folds = rows_csv(folder / "folds.csv", "recording_id,fold", *(f"r{i},{i % 2}" for i in range(8)))
    return folder / "clips", paths, folds


def test_a_table_of_boxes_knows_what_the_boxes_say_of_their_recordings(field):
    boxes = read_boxes(*field[1])
    expected = recording_labels(boxes)
    alone, frame = box_table(boxes, None), box_table(boxes, field[2])
    assert alone["fname"].tolist() == [f"r{i}" for i in range(7)] and "fold" not in alone
    assert frame["fname"].tolist() == [f"r{i}" for i in range(8)]
    assert frame["fold"].tolist() == [i % 2 for i in range(8)]
    targets = clip_labels(frame, boxes.classes).targets
    np.testing.assert_array_equal(targets[:7], expected.targets)
    assert np.isnan(targets[7]).all()
    np.testing.assert_array_equal(clip_labels(alone, boxes.classes).targets, expected.targets)


@pytest.mark.parametrize(
    "lines, words",
    [
        (["recording_id,fold", "r0,0"], r"has no fold for 6 recordings with boxes, e\.g\. 'r1'"),
        (
            ["recording_id,fold", *(f"r{i},0" for i in range(8)), "r3,1"],
            r"line 10: 'r3' stands on line 5 already",
        ),
        (["name,fold", "r0,0"], "unknown column 'recording_id'"),
        (["recording_id,fold", "r0,first"], "fold is 'first', wanted a whole number"),
    ],
)
def test_folds_of_recordings_that_cannot_be_used_are_an_error(field, tmp_path, lines, words):
    with pytest.raises(KitError, match=words):
        box_table(read_boxes(*field[1]), rows_csv(tmp_path / "folds.csv", *lines))


def test_recordings_with_boxes_are_scored_on_their_known_labels_alone(field, tmp_path):
    recipe = replace(BCE, average_over="labels", inference=InferenceConfig("windows", 0.4, 0.2, pool="max"))
    run = train_quietly(recipe, field[2], field[0], tmp_path / "run", boxes=field[1])
    known = recording_labels(read_boxes(*field[1])).targets
    np.testing.assert_array_equal(run.oof.truth[:7], known)
    assert np.isnan(run.oof.truth[7]).all() and run.oof.names[7] == "r7"
    assert run.oof.lwlrap == pytest.approx(lwlrap(known, run.oof.probabilities[:7]))
    again = predict_oof(run.folder, field[0], "cpu", 1, False)
    np.testing.assert_allclose(again.probabilities, run.oof.probabilities, atol=1e-5)
    assert again.lwlrap == pytest.approx(run.oof.lwlrap, abs=1e-6)
    bare = train_quietly(recipe, None, field[0], tmp_path / "bare", boxes=field[1])
    assert len(bare.oof.names) == 7 and set(bare.oof.folds.tolist()) == {0, 1}
    with pytest.raises(KitError, match=r"labels\.json belongs to another run"):
        moved = tmp_path / "false.csv"
        moved.write_text(field[1][1].read_text().replace("0.7,100,1.1", "0.7,100,1.2"))
        train_quietly(recipe, field[2], field[0], tmp_path / "run", boxes=(field[1][0], moved))


def test_boxes_of_a_held_out_recording_leave_no_trace_in_the_weights(field, tmp_path):
    other = tmp_path / "true.csv"
    other.write_text(field[1][0].read_text().replace("r0,0,1,0.2,100,0.6", "r0,0,1,0.9,100,1.4"))
    learnt = tmp_path / "learnt.csv"
    learnt.write_text(field[1][0].read_text().replace("r1,1,1,0.2,100,0.6", "r1,1,1,0.9,100,1.4"))
    runs = [
        train_quietly(BCE, field[2], field[0], tmp_path / str(k), only_folds=[0], boxes=(path, field[1][1]))
        for k, path in enumerate((field[1][0], other, learnt))
    ]
    plain, held, changed = (weights_of(run.folder / "fold_0.pt") for run in runs)
    assert same_bits(plain, held) and not same_bits(plain, changed)


def test_soft_labels_of_windows_speak_of_the_classes_that_they_name_in_any_order(field):
    boxes = read_boxes(*field[1])
    begin = np.arange(3) * 0.5
    targets = np.array([[0.1, 0.2, 0.3]] * 3)
    soft = SoftLabels(("r0",) * 3, boxes.classes, targets, begin, begin + 0.5)
    turned = replace(soft, classes=("s2", "s0"), targets=targets[:, [2, 0]])
    frame = box_table(boxes, field[2])
    for given, expected in ((soft, [0.1, 0.2, 0.3]), (turned, [0.1, np.nan, 0.3])):
        data = load_dataset(BCE, frame, np.asarray(frame["fold"]), field[0], CPU, 1, False, boxes, given)
        clips = data.train_split(1)
        heard = clips.labels_of(clips.names.index("r0"), 1.15, 1.45, 0.5)
        np.testing.assert_array_equal(heard, np.float32(expected))


def test_two_files_of_boxes_are_wanted(field, tmp_path):
    with pytest.raises(KitError, match="boxes wants two CSVs, of true and of false ones, got 1"):
        train_quietly(BCE, field[2], field[0], tmp_path / "run", boxes=field[1][:1])
    with pytest.raises(KitError, match="train wants a table of clips, or boxes"):
        train_quietly(BCE, None, field[0], tmp_path / "run")


# Sounds


def test_backgrounds_are_wanted_where_they_are_laid_under_crops(toy, tmp_path):
    recipe = BCE.override(["wave_augment.background_p=1.0"])
    with pytest.raises(
        KitError, match=r"wants a folder of sounds: --backgrounds DIR, or wave_augment\.background_p=0"
    ):
        train_quietly(recipe, *toy, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(KitError, match="holds no audio to lay under crops"):
        train_quietly(recipe, *toy, tmp_path / "run", backgrounds=tmp_path / "empty")
    (tmp_path / "under" / "deep").mkdir(parents=True)
    shutil.copy(toy[1] / "03.wav", tmp_path / "under" / "deep" / "a.wav")
    under = train_quietly(recipe, *toy, tmp_path / "over", only_folds=[0], backgrounds=tmp_path / "under")
    plain = train_quietly(
        BCE.override(["wave_augment.gain_p=1e-9"]), *toy, tmp_path / "plain", only_folds=[0]
    )
    assert not same_bits(weights_of(under.folder / "fold_0.pt"), weights_of(plain.folder / "fold_0.pt"))


def test_files_of_one_content_in_two_folds_are_told_of(toy, tmp_path, capsys):
    shutil.copytree(toy[1], tmp_path / "clips")
    heard(BCE, toy[0], tmp_path / "clips")
    assert "WARNING" not in capsys.readouterr().out
    shutil.copy(tmp_path / "clips" / "00.wav", tmp_path / "clips" / "01.wav")
    heard(BCE, toy[0], tmp_path / "clips")
    assert "1 recordings lie in several folds under several names" in capsys.readouterr().out
