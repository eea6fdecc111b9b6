"""Find a competition's data where Kaggle attaches them, or make toy data of the same form."""

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kit.core.errors import choose
from kit.core.files import write_text
from kit.labels.table import class_names, classes_of_template, read_clip_table
from kit.models.checkpoint import open_checkpoint
from kit.toydata import make_toy_set, make_toy_soundscapes, write_zeros

KAGGLE_INPUT = Path("/kaggle/input")
# The file that shows that a folder holds data of a kind.
MARKS = {"clips": "train_curated.csv", "boxes": "train_tp.csv"}
TEACHER_FOLDERS = {"rounds", "strict", "state"}
AUDIO_FOLDERS = {"train", "test", "audio", "train_audio", "train_curated", "train_noisy", "train_soundscapes"}


@dataclass(frozen=True)
class CompetitionData:
    """The paths that self_train and submit need, and the `truth` of the test where it is available.

    Data of clips have a `table`, whose column `source` is curated or noisy, and `curated`, without the noisy clips.
    Data of boxes have two files of `boxes`, true and false ones.
    """

    name: str
    audio: Path
    test: Path
    template: Path
    table: Path | None = None
    curated: Path | None = None
    boxes: tuple[Path, Path] | None = None
    group_column: str | None = None
    truth: Path | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the template."""
        return classes_of_template(self.template)

    def __str__(self) -> str:
        details = []
        for path in (self.table, *(self.boxes or ())):
            if path:
                rows = len(path.read_text("utf-8").splitlines()) - 1
                details.append(f"{rows:,} rows in {path.name}")
        details.append(f"{len(self.classes)} classes")
        return f"{self.name}: {', '.join(details)}; audio in {self.audio}, test in {self.test}"

    __repr__ = __str__


def find_data(
    kind: str, out: str | Path, toy: int = 0, inputs: str | Path | Iterable[str | Path] = KAGGLE_INPUT
) -> CompetitionData:
    """Find a competition's data, or for clips else ESC-10; where there are none, make toy data in `out`.

    Tables that training needs are written to `out`. A folder with labels.csv and audio/ counts as ESC-10.

    Options:
        kind: clips, as in Freesound Audio Tagging 2019, or boxes, as in RFCX Species Audio Detection
        out: the folder to write to
        toy: make this many toy clips or recordings for training, whatever data there are
        inputs: folders where data are searched, down to two levels below; by default Kaggle's input
    """
    mark = choose("kind of data", kind, MARKS)
    out = Path(out)
    if not toy:
        places = [inputs] if isinstance(inputs, str | Path) else inputs
        folders = data_folders([Path(place) for place in places])
        for folder in folders:
            if (folder / mark).is_file():
                return read_layout(kind, folder, out)
        for folder in folders:
            if kind == "clips" and (folder / "labels.csv").is_file() and (folder / "audio").is_dir():
                return split_esc10(folder, out)

    clips = toy or 120
    folder = out / f"toy_{kind}_{clips}"
    if kind == "boxes":
        make_toy_soundscapes(folder, clips, clips // 2)
    else:
        make_toy_set(folder, clips, clips // 2, noisy=clips)
    return read_layout(kind, folder, out)


def data_folders(places: Iterable[Path]) -> list[Path]:
    """Return some folders and those down to two levels in them: Kaggle mounts input/NAME or input/competitions/NAME.

    A deeper search would list every audio file, over a minute in a large competition.
    """
    folders = []
    for place in places:
        folders += [place, *sorted(place.glob("*/")), *sorted(place.glob("*/*/"))]
    return folders


def read_layout(kind: str, root: Path, out: Path) -> CompetitionData:
    """Return the data of a folder laid out as Freesound 2019, as RFCX, or as toy data."""
    import pandas

    truth = root / "test_truth.csv"
    data = CompetitionData(
        name=root.name,
        audio=root / "train" if kind == "boxes" else root,
        test=root / "test",
        template=root / "sample_submission.csv",
        truth=truth if truth.is_file() else None,
    )
    if kind == "boxes":
        return replace(data, boxes=(root / "train_tp.csv", root / "train_fp.csv"))
    is_toy = (root / "train.csv").is_file()
    folders = ("train", "noisy") if is_toy else ("train_curated", "train_noisy")
    tables = []
    for folder, source in zip(folders, ("curated", "noisy"), strict=True):
        table = read_clip_table(root / f"{folder}.csv")
        tables.append(table.assign(fname=f"{folder}/" + table["fname"], source=source))
    write_frame(out / "train.csv", pandas.concat(tables).fillna(""))
    write_frame(out / "curated.csv", tables[0])
    return replace(data, table=out / "train.csv", curated=out / "curated.csv")


def write_frame(path: Path, frame: Any) -> None:
    """Write a pandas DataFrame as a whole CSV file."""
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def split_esc10(root: Path, out: Path) -> CompetitionData:
    """Return ESC-10 with folds 1 to 4 as training data, none of them noisy, and fold 5 as the test."""
    frame = read_clip_table(root / "labels.csv")
    is_test = frame["fold"] == 5
    test = frame[is_test]
    write_frame(out / "train.csv", frame[~is_test].drop(columns="fold").assign(source="curated"))
    write_frame(out / "test_truth.csv", test)
    write_zeros(out, "fname", test["fname"], class_names(frame["labels"]))
    return CompetitionData(
        name="ESC-10",
        audio=root / "audio",
        test=root / "audio",
        template=out / "sample_submission.csv",
        table=out / "train.csv",
        curated=out / "train.csv",
        group_column="source_id",
        truth=out / "test_truth.csv",
    )


def fitting_checkpoints(classes: Iterable[str], places: Iterable[str | Path]) -> list[Path]:
    """Return the folds' checkpoints below some folders whose classes are exactly these.

    Teachers of earlier iterations and states of unfinished training are left out.

    Options:
        classes: names of classes, in any order
        places: folders
    """
    wanted = set(classes)
    found = set()
    for place in places:
        for folder, subfolders, names in os.walk(place):
            # os.walk skips what is taken out of this list. Folders of audio may hold 100,000 files.
            subfolders[:] = [name for name in subfolders if name not in TEACHER_FOLDERS | AUDIO_FOLDERS]
            found |= {Path(folder, name) for name in fnmatch.filter(names, "fold_*.pt")}
    return [path for path in sorted(found) if set(open_checkpoint(path).card.classes) == wanted]
