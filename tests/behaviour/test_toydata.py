"""Toy data, and the data that notebooks find or make."""

from pathlib import Path

import numpy as np
import pytest

from kit.audio.decode import Sound, decode_file
from kit.competitions import find_data, fitting_checkpoints
from kit.core.errors import KitError
from kit.labels.boxes import read_boxes, recording_labels
from kit.labels.table import read_clip_table, split_labels
from kit.models.checkpoint import save_tagger
from kit.models.tagger import TaggerCard, build_tagger
from kit.toydata import TOY_RATE, make_toy_set, make_toy_soundscapes, spoil_labels


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_noisy_part_leaves_the_toy_set_as_it_was(tmp_path: Path) -> None:
    make_toy_set(tmp_path / "plain", 3, 2, seed=4)
    make_toy_set(tmp_path / "more", 3, 2, seed=4, noisy=3)
    plain, more = contents(tmp_path / "plain"), contents(tmp_path / "more")
    assert plain == {name: more[name] for name in plain}
    added = {name for name in more if name not in plain}
    assert added == {"noisy.csv", *(f"noisy/noisy_{i:04d}.wav" for i in range(3))}


def test_spoiled_labels_are_as_many_and_all_wrong() -> None:
    import pandas

    table = pandas.DataFrame(
        {"fname": [f"{i}.wav" for i in range(400)], "labels": ["a", "b,c", "d", "b"] * 100}
    )
    spoiled = spoil_labels(table, 0.3, seed=1)
    assert list(spoiled["true_labels"]) == list(table["labels"])
    pairs = [tuple(map(split_labels, pair)) for pair in zip(spoiled["labels"], table["labels"], strict=True)]
    wrong = [(now, true) for now, true in pairs if now != true]
    assert 0.2 < len(wrong) / len(pairs) < 0.4
    assert all(len(now) == len(true) and not {*now} & {*true} for now, true in wrong)
    assert list(spoil_labels(table, 0.3, seed=1)["labels"]) == list(spoiled["labels"])


def centre_hz(path: Path, begin_s: float, end_s: float) -> np.ndarray:
    """The frequencies, strongest first, of a stretch."""
    sound = decode_file(path)
    assert isinstance(sound, Sound) and sound.sample_rate == TOY_RATE
    piece = sound.wave[round(begin_s * TOY_RATE) : round(end_s * TOY_RATE)]
    order = np.argsort(-np.abs(np.fft.rfft(piece)))
    return np.asarray(np.fft.rfftfreq(len(piece), 1 / TOY_RATE)[order])


def test_every_box_holds_a_song_in_its_band_and_false_ones_are_of_species_that_are_not_there(
    tmp_path: Path,
) -> None:
    make_toy_soundscapes(tmp_path, 12, 2, seed=2)
    boxes = read_boxes(tmp_path / "train_tp.csv", tmp_path / "train_fp.csv")
    assert boxes.is_true.sum() == 12 and (~boxes.is_true).sum() == 24
    edges = zip(boxes.begin_s, boxes.end_s, boxes.low_hz, boxes.high_hz, strict=True)
    for name, (begin, end, low, high) in zip(boxes.recordings, edges, strict=True):
        strongest = centre_hz(tmp_path / "train" / f"{name}.flac", begin, end)[:200]
        assert ((low < strongest) & (strongest < high)).any(), name
    told = recording_labels(boxes).targets
    assert (np.nansum(told, axis=1) == 1).all() and ((told == 0).sum(axis=1) == 2).all()
    again = tmp_path / "again"
    make_toy_soundscapes(again, 12, 2, seed=2)
    assert contents(again) == {name: text for name, text in contents(tmp_path).items() if "again" not in name}


def lay_out_freesound(root: Path) -> None:
    """Freesound's layout, one clip each."""
    for part in ("train_curated", "train_noisy"):
        (root / part).mkdir(parents=True)
        (root / f"{part}.csv").write_text(f'fname,labels\n{part[6]}.wav,"Bark,Meow"\n')
    (root / "sample_submission.csv").write_text("fname,Bark,Meow\nt.wav,0,0\n")


@pytest.mark.parametrize("place", ["freesound", "competitions/freesound"])
def test_an_attached_competition_is_found_first_and_joined(tmp_path: Path, place: str) -> None:
    lay_out_freesound(tmp_path / "input" / place)
    data = find_data("clips", tmp_path / "room", inputs=tmp_path / "input")
    assert data.name == "freesound" and data.audio == tmp_path / "input" / place and data.truth is None
    assert data.table and data.curated and data.classes == ("Bark", "Meow") and data.boxes is None
    table, curated = read_clip_table(data.table), read_clip_table(data.curated)
    assert list(table["fname"]) == ["train_curated/c.wav", "train_noisy/n.wav"]
    assert list(table["source"]) == ["curated", "noisy"] and list(curated["fname"]) == ["train_curated/c.wav"]
    made = find_data("clips", tmp_path / "room", toy=2, inputs=tmp_path / "input")
    assert made.name == "toy_clips_2" and made.truth


def test_esc10_above_the_room_is_split_by_its_fifth_fold(tmp_path: Path) -> None:
    root = tmp_path / "shared" / "data" / "esc10"
    root.mkdir(parents=True)
    rows = [
        f"{fold}-{k}.ogg,{label},{fold},{fold}{k}"
        for fold in range(1, 6)
        for k, label in enumerate(("Rain", "Sea"))
    ]
    (root / "labels.csv").write_text("\n".join(["fname,labels,fold,source_id", *rows, ""]))
    data = find_data("clips", tmp_path / "some" / "room", inputs=tmp_path / "nothing")
    assert data.table and data.table == data.curated and data.truth and data.group_column == "source_id"
    table, truth = read_clip_table(data.table), read_clip_table(data.truth)
    assert not {*table["fname"]} & {*truth["fname"]}
    assert len(table) == 8 and "fold" not in table and {*table["source"]} == {"curated"}
    assert list(truth["fname"]) == ["5-0.ogg", "5-1.ogg"] and data.classes == ("Rain", "Sea")


def test_where_there_is_nothing_toy_data_are_made(tmp_path: Path) -> None:
    data = find_data("boxes", tmp_path, toy=4, inputs=tmp_path / "nothing")
    assert data.boxes and data.table is None and all(path.is_file() for path in (*data.boxes, data.template))
    assert len([*data.audio.iterdir()]) == 4 and len([*data.test.iterdir()]) == 2
    assert str(data).startswith("toy_boxes_4: 4 rows in train_tp.csv, 8 rows in train_fp.csv, 6 classes;")
    with pytest.raises(KitError, match="'clips'"):
        find_data("clip", tmp_path)


def test_checkpoints_fit_by_their_classes_and_teachers_are_passed_over(tmp_path: Path) -> None:
    tagger = build_tagger(TaggerCard(classes=("bark", "meow"), network={"family": "max-pyramid", "width": 4}))
    for place in ("run/fold_0.pt", "run/rounds/0/fold_0.pt", "run/strict/fold_1/student/fold_1.pt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        save_tagger(tmp_path / place, tagger)
    (tmp_path / "run/state").mkdir()
    (tmp_path / "run/state/fold_0.resume.pt").write_bytes(b"no checkpoint")
    found = fitting_checkpoints(("meow", "bark"), [tmp_path, tmp_path / "run", tmp_path / "nothing"])
    assert found == [tmp_path / "run" / "fold_0.pt"]
    assert fitting_checkpoints(("bark",), [tmp_path]) == []
