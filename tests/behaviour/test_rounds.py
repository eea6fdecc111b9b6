"""Rounds of relabelling: stopped anywhere the same end; a held-out fold leaves no trace in strict purity."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.audio.frontend import FrontendConfig
from kit.core.clock import Deadline, set_deadline
from kit.core.errors import KitError
from kit.labels.soft import align_soft_labels, read_soft_labels
from kit.labels.table import read_clip_table
from kit.models.checkpoint import load_tagger
from kit.train.oof import held_out_models, predict_oof
from kit.train.pseudo_labels import SelfTrainingConfig
from kit.train.recipe import Recipe
from kit.train.relabel import predict_pseudo_labels
from kit.train.run import train_run
from kit.train.self_training import SelfTraining, boxes_without, self_train

pytestmark = pytest.mark.usefixtures("one_core")

CLASSES = ("high", "low", "noisy")
TINY = Recipe(
    frontend=FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=16, f_min_hz=20.0),
    network={"family": "max-pyramid", "blocks": 2, "width": 4},
    loss="bce", crop_s=0.2, epochs=1, no_augment_epochs=0, batch_size=4, n_folds=3,
)  # fmt: skip


def with_rounds(rounds, **settings):
    """The tiny recipe with some rounds of relabelling; agreement predicts what it does not keep."""
    return replace(TINY, self_training=SelfTrainingConfig(iterations=rounds, **{"methods": ("agreement",), **settings}))


def write_tone(path, kind, seed):
    """A clip of one kind of sound."""
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(seed)
    t = np.arange(int(8000 * rng.uniform(0.4, 0.9))) / 8000
    wave = {"high": np.sin(2 * np.pi * 2500 * t), "low": np.sin(2 * np.pi * 300 * t)}.get(kind)
    wave = rng.normal(size=len(t)) if wave is None else wave
    soundfile.write(path, 0.2 * wave, 8000, subtype="PCM_16")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Twelve clips in three folds, of which the last six are noisy; the table's path and the folder's."""
    folder, rows = tmp_path_factory.mktemp("toy"), []
    (folder / "clips").mkdir()
    for i in range(12):
        kind = CLASSES[(i // 3) % 3]
        write_tone(folder / "clips" / f"{i:02d}.wav", kind, i)
        source = "curated" if i < 6 else "noisy"
        rows.append({"fname": f"{i:02d}.wav", "labels": kind, "fold": i % 3, "source": source})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv", folder / "clips"


@pytest.fixture(scope="module")
def planted(toy, tmp_path_factory):
    """The same set, but that fold 0 has other sounds and other labels."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(toy[1], folder / "clips")
    frame = pd.read_csv(toy[0])
    for i in range(0, 12, 3):
        kind = CLASSES[(i // 3 + 1) % 3]
        frame.loc[i, "labels"] = kind
        write_tone(folder / "clips" / f"{i:02d}.wav", kind, 100 + i)
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv", folder / "clips"


def rounds_quietly(recipe, table, audio, out, **options):
    """A training with its rounds on the CPU, without a progress bar."""
    return self_train(recipe, table, audio, out, device="cpu", threads=1, progress=False, **options)


def weights_of(path):
    """The tensors of a checkpoint."""
    return load_tagger(path).network.state_dict()


def same_bits(one, other):
    """Whether two checkpoints hold equal tensors, bit for bit."""
    one, other = weights_of(one), weights_of(other)
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


class Killed(Exception):
    """Stands for a kill."""


def stop_after(trainings):
    """A training that is killed before it would begin for the time after so many."""
    done = []

    def train(*words, **options):
        if len(done) == trainings:
            raise Killed
        done.append(train_run(*words, **options))
        return done[-1]

    return train


@pytest.fixture(scope="module")
def two(toy, tmp_path_factory):
    """Two rounds of plain purity on the set."""
    recipe = with_rounds(2, top_k=(0.5,))
    return rounds_quietly(recipe, *toy, tmp_path_factory.mktemp("two") / "run")


def test_without_rounds_a_run_is_a_run(toy, tmp_path):
    run = rounds_quietly(TINY, *toy, tmp_path / "one", only_folds=[1])
    train_run(TINY, *toy, tmp_path / "two", [1], device="cpu", threads=1, progress=False)
    assert same_bits(run.folder / "fold_1.pt", tmp_path / "two" / "fold_1.pt")
    assert not (run.folder / "rounds").exists()


def test_every_round_relabels_the_table_as_it_was(two, toy):
    given, homes = read_clip_table(toy[0]), two.folder / "rounds"
    for number in (1, 2):
        frame = read_clip_table(homes / str(number) / "labels" / "table.csv")
        report = json.loads((homes / str(number) / "labels" / "relabel.json").read_text())
        assert frame["fname"].tolist() == given["fname"].tolist() and report["round"] == number
        kept = frame["labels"] != ""
        assert kept[:6].all() and kept[6:].sum() == 3
        assert frame["labels"][kept].tolist() == given["labels"][kept].tolist()
        assert {path.split("/")[-2] for path in report["models"]} == {str(number - 1)}
        assert report["counts"]["predicted"] == (3 if number == 2 else 0)
    soft = read_soft_labels(homes / "2" / "labels" / "soft.csv")
    assert set(soft.names) == set(frame["fname"][~kept])


def test_students_of_as_many_rounds_teach_as_are_told(toy, tmp_path):
    """Law 4: each clip by the models of every round that held it out."""
    run = rounds_quietly(
        with_rounds(3, methods=("plain",), teachers=2), *unknown(toy, tmp_path), tmp_path / "run"
    )
    for number, teachers in ((1, "0"), (2, "01"), (3, "12")):
        labels = run.folder / "rounds" / str(number) / "labels"
        report = json.loads((labels / "relabel.json").read_text())
        assert {path.split("/")[-2] for path in report["models"]} == {*teachers}
    runs = [run.folder / "rounds" / home for home in "12"]
    wanted, _ = predict_pseudo_labels(runs, toy[1], device="cpu", threads=1, progress=False)
    told = read_soft_labels(labels / "soft.csv")
    np.testing.assert_allclose(told.targets, align_soft_labels(wanted, told.names, told.classes), atol=1e-6)


def unknown(toy, folder):
    """The set, half of its labels unknown."""
    frame = pd.read_csv(toy[0]).assign(false_labels="*")
    frame.loc[6:, ["labels", "false_labels"]] = ""
    frame.to_csv(folder / "half.csv", index=False)
    return folder / "half.csv", toy[1]


def test_the_last_student_is_the_run(two, toy):
    homes = two.folder / "rounds"
    frame = pd.read_csv(two.folder / "oof.csv", dtype={"fname": str})
    assert frame["fname"].tolist() == read_clip_table(toy[0])["fname"].tolist()
    assert sorted(path.name for path in two.folder.glob("fold_*.pt")) == [f"fold_{k}.pt" for k in range(3)]
    assert not same_bits(two.folder / "fold_0.pt", homes / "1" / "fold_0.pt")
    labels = homes / "2" / "labels"
    alone = train_run(
        two.recipe, labels / "table.csv", toy[1], two.folder.parent / "alone", [0], soft=labels / "soft.csv",
        device="cpu", threads=1, progress=False,
    )  # fmt: skip
    assert same_bits(alone.folder / "fold_0.pt", two.folder / "fold_0.pt")


def test_rounds_go_on_where_they_stopped_to_the_same_end(two, toy, tmp_path):
    """Law 7: killed in a training, or after it while its labels are told."""
    done = []

    def counts(*words, **options):
        done.append(train_run(*words, **options))
        return done[-1]

    with pytest.raises(Killed):
        rounds_quietly(two.recipe, *toy, tmp_path / "run", train=stop_after(2))
    (tmp_path / "run" / "rounds" / "2" / "labels" / "relabel.json").unlink()
    run = rounds_quietly(two.recipe, *toy, tmp_path / "run", train=counts)
    assert len(done) == 1
    assert all(same_bits(run.folder / f"fold_{k}.pt", two.folder / f"fold_{k}.pt") for k in range(3))
    assert (run.folder / "oof.csv").read_bytes() == (two.folder / "oof.csv").read_bytes()


def test_where_agreement_ranks_the_first_teacher_learns_no_doubted_label(toy, tmp_path):
    """The given table's labels are still what is ranked; without curated clips there is nothing else to learn from."""
    frame, ranked, teachers = pd.read_csv(toy[0]), [], []
    changed = frame.assign(labels=frame["labels"].where(frame.index != 7, "high"))
    for name, table in (("one", frame), ("two", changed), ("all", frame.drop(columns="source"))):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        recipe = with_rounds(1, top_k=(0.5,))
        with pytest.raises(Killed):
            rounds_quietly(recipe, tmp_path / f"{name}.csv", toy[1], tmp_path / name, train=stop_after(1))
        home = tmp_path / name / "rounds"
        teachers.append([home / "0" / f"fold_{k}.pt" for k in range(3)])
        ranked.append(read_clip_table(home / "1" / "labels" / "table.csv"))
        held = sorted(pd.read_csv(home / "0" / "oof.csv")["fname"])
        assert held == [f"{i:02d}.wav" for i in range(12)]
    one, two, everything = teachers
    assert all(same_bits(*pair) for pair in zip(one, two, strict=True))
    assert not any(same_bits(*pair) for pair in zip(one, everything, strict=True))
    kept = [set(table["labels"][6:]) - {""} for table in ranked[:2]]
    assert all(kept) and ((ranked[0]["labels"] != "").sum(), len(ranked[0])) == (9, 12)


def test_a_clips_soft_label_does_not_hear_its_own_label_but_other_clips_soft_labels_do(
    toy, planted, tmp_path, capsys
):
    """Law 4 in plain purity: the first order holds, and the report tells of the second, which there is."""
    frame, told, runs = pd.read_csv(toy[0]), [], []
    relabelled = frame.assign(labels=pd.read_csv(planted[0])["labels"])
    for name, table in (("one", frame), ("two", relabelled)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        run = rounds_quietly(
            with_rounds(1), tmp_path / f"{name}.csv", toy[1], tmp_path / name, only_folds=[0]
        )
        told.append(read_soft_labels(run.folder / "rounds" / "1" / "labels" / "soft.csv"))
        runs.append(run.folder / "fold_0.pt")
    names = np.array(told[0].names)
    own = np.isin(names, frame["fname"][frame["fold"] == 0])
    assert told[0].names == told[1].names and own.any() and not own.all()
    np.testing.assert_array_equal(told[0].targets[own], told[1].targets[own])
    assert (told[0].targets[~own] != told[1].targets[~own]).any(axis=1).all()
    assert not same_bits(*runs)
    assert "Second order: these may have learnt" in capsys.readouterr().out


def test_in_strict_purity_a_fold_leaves_no_trace_in_its_student(toy, planted, tmp_path):
    """Law 4, all orders: other labels and other sound in fold 0 give the same student of fold 0, bit for bit."""
    recipe = with_rounds(2, purity="strict", methods=("agreement", "snr"), top_k=(0.5,), hop_s=0.1)
    one, two = (
        rounds_quietly(recipe, *data, tmp_path / name, only_folds=[0])
        for name, data in (("one", toy), ("two", planted))
    )
    assert same_bits(one.folder / "fold_0.pt", two.folder / "fold_0.pt")
    assert not np.array_equal(one.oof.probabilities, two.oof.probabilities)
    for path in sorted((one.folder / "strict" / "fold_0").rglob("soft.csv")):
        assert not {f"{i:02d}.wav" for i in range(0, 12, 3)} & set(read_soft_labels(path).names)
    report = json.loads((one.folder / "strict" / "fold_0" / "2" / "labels" / "relabel.json").read_text())
    assert report["leaks"].startswith("No model of these teachers") and report["counts"]["set1"] > 0


def test_strict_students_make_one_run_that_goes_on(toy, tmp_path):
    recipe, trained = with_rounds(1, purity="strict"), []

    def counts(*words, **options):
        trained.append(words[3])
        return train_run(*words, **options)

    rounds_quietly(recipe, *toy, tmp_path / "run", only_folds=[0, 1], train=counts)
    assert len(trained) == 4
    run = rounds_quietly(recipe, *toy, tmp_path / "run", train=counts)
    assert len(trained) == 4 + 2 + 2  # students are taken up again, teachers are not
    assert run.oof.names == tuple(f"{i:02d}.wav" for i in range(12)) and run.oof.classes == CLASSES
    assert len(held_out_models(run.folder)) == 3
    again = predict_oof(run.folder, toy[1], device="cpu", threads=1, progress=False)
    np.testing.assert_allclose(again.probabilities, run.oof.probabilities, atol=1e-5)


def test_strict_purity_wants_three_folds(toy, tmp_path):
    frame = pd.read_csv(toy[0])
    frame.assign(fold=frame["fold"].clip(upper=1)).to_csv(tmp_path / "table.csv", index=False)
    recipe = with_rounds(1, purity="strict")
    with pytest.raises(KitError, match=r"and 2 others, in the table of \[0, 1\]"):
        rounds_quietly(recipe, tmp_path / "table.csv", toy[1], tmp_path / "run")
    with pytest.raises(KitError, match=r"strict purity of folds \[7\]"):
        rounds_quietly(recipe, *toy, tmp_path / "other", only_folds=[7])


def test_a_folder_of_other_rounds_is_refused(two, toy, tmp_path):
    with pytest.raises(KitError, match=r"tells of other rounds.*choose another --out"):
        rounds_quietly(with_rounds(1, top_k=(0.5,)), *toy, two.folder)


def test_a_folder_of_another_run_is_refused_before_any_round_is_trained(toy, tmp_path):
    self_train(TINY, *toy, tmp_path, only_folds=[0], progress=False, threads=1)
    with pytest.raises(KitError, match="belongs to another run"):
        self_train(with_rounds(1), *toy, tmp_path, progress=False, threads=1)
    assert not list(tmp_path.glob("rounds/*/*.pt"))


@pytest.mark.parametrize("train", [train_run, self_train])
def test_a_name_or_a_table_in_the_wrong_place_is_answered_with_the_right_one(toy, tmp_path, train):
    with pytest.raises(KitError, match=r"find_recipe\(.* got 'max-pyramid-mel'"):
        train("max-pyramid-mel", *toy, tmp_path)
    with pytest.raises(KitError, match="path of a CSV, got a DataFrame"):
        train(with_rounds(1) if train is self_train else TINY, pd.read_csv(toy[0]), toy[1], tmp_path)


def test_corrected_clips_are_learnt_as_corrected(toy, tmp_path):
    (tmp_path / "list.json").write_text('{"00.wav": "low", "04.wav": null}')
    run = rounds_quietly(TINY, *toy, tmp_path / "run", only_folds=[0], corrections=tmp_path / "list.json")
    frame = read_clip_table(run.folder / "folds.csv")
    assert len(frame) == 11 and frame["labels"][0] == "low"


def test_trainings_have_equal_parts_of_the_time(toy, tmp_path):
    """The tolerance is a quarter of an hour: no pause between two looks at the clock comes near it."""
    until, now = [], 1e10

    def notes(*words, **options):
        until.append(options["deadline"])

    clock = Deadline(now + 4e6, lambda: now)
    for left in (4, 1):
        SelfTraining(TINY, toy[1], clock, notes, {}).learn(toy[0], tmp_path, tmp_path, left, None)
    assert [set_deadline(seconds).at - now for seconds in until] == pytest.approx([1e6, 4e6], abs=900)
    (tmp_path / "list.json").write_text("{}")
    rounds_quietly(
        TINY, *toy, tmp_path / "run", deadline="1000h", corrections=tmp_path / "list.json", train=notes
    )
    assert until[2] == pytest.approx(3.6e6, abs=900)


def test_boxes_of_some_recordings_stay_out(tmp_path):
    header = "recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max\n"
    for folder, rows in (("a", "x,0,1,0,1,1,2\ny,0,1,0,1,1,2\n"), ("b", "y,1,1,0,1,1,2\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.csv").write_text(header + rows)
    paths = boxes_without([tmp_path / "a" / "train.csv", tmp_path / "b" / "train.csv"], {"y"}, tmp_path)
    assert [path.read_text() for path in paths] == [header + "x,0,1,0,1,1,2\n", header]


@pytest.mark.parametrize("purity", ["plain", "strict"])
def test_windows_teach_recordings_with_boxes(tmp_path, purity):
    soundfile, rng = pytest.importorskip("soundfile"), np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    header, texts = "recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max", {"true": [], "false": []}
    for i in range(6):
        soundfile.write(tmp_path / "clips" / f"r{i}.wav", 0.1 * rng.normal(size=8000), 8000)
        texts["true"].append(f"r{i},{i % 2},1,0.1,500,0.4,900")
        texts["false"].append(f"r{i},{1 - i % 2},1,0.6,500,0.9,900")
    paths = [tmp_path / f"{state}.csv" for state in texts]
    for path, lines in zip(paths, texts.values(), strict=True):
        path.write_text("\n".join([header, *lines, ""]))
    (tmp_path / "folds.csv").write_text("recording_id,fold\n" + "".join(f"r{i},{i % 3}\n" for i in range(6)))
    recipe = with_rounds(1, methods=("windows",), purity=purity, hop_s=0.2)
    words = (recipe, tmp_path / "folds.csv", tmp_path / "clips", tmp_path / "run")
    run = rounds_quietly(*words, boxes=paths, only_folds=[0])
    assert run.oof.classes == ("s0", "s1") and run.oof.names == ("r0", "r3")
    home = "rounds/1/labels" if purity == "plain" else "strict/fold_0/1/labels"
    soft = read_soft_labels(run.folder / home / "soft.csv")
    assert set(soft.names) == {f"r{i}" for i in range(6) if purity == "plain" or i % 3}
    rows = soft.rows["r1"]
    begin, end = (t[rows] for t in soft.times)
    inside = np.minimum(end, 0.4) - np.maximum(begin, 0.1) >= 0.12
    assert inside.any() and (soft.targets[rows][inside, 1] == 1).all()
