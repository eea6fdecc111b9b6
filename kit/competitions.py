"""Find a competition's data where Kaggle attaches them, or make toy data of the same form."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kit.core.errors import choose
from kit.core.files import write_text
from kit.labels.table import class_names, classes_of_template, read_clip_table
from kit.models.checkpoint import read_checkpoint
from kit.toydata import make_toy_set, make_toy_soundscapes, write_zeros

KAGGLE_INPUT = Path("/kaggle/input")
# The file that shows that a folder holds data of a kind.
MARKS = {"clips": "train_curated.csv", "boxes": "train_tp.csv"}
TEACHER_FOLDERS = {"rounds", "strict", "state"}
AUDIO_FOLDERS = {"train", "test", "audio", "train_audio", "train_curated", "train_noisy", "train_soundscapes"}


@dataclass(frozen=True)
class CompetitionData:
    """The paths that self_train and submit need, and the `truth` of the test where it is available.

    Data of clips have a `table`, whose column `source` is curated or noisy, and `curated`, the table without the
    noisy clips. Data of boxes have two files of `boxes`, true and false ones.
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
        tables = [self.table] if self.table else []
        details = []
        for path in [*tables, *(self.boxes or ())]:
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
    """Return some folders and those in them, down to two levels, in a fixed order.

    Kaggle mounts a competition at input/NAME or input/competitions/NAME. A deeper search would list every audio
    file, which takes over a minute in a large competition.
    """
    folders = []
    for place in places:
        folders.append(place)
        for pattern in ("*/", "*/*/"):
            folders += sorted(place.glob(pattern))
    return folders


def read_layout(kind: str, root: Path, out: Path) -> CompetitionData:
    """Return the data of a folder that is laid out as Freesound 2019, as RFCX, or as toy data."""
    import pandas

    truth = root / "test_truth.csv"
    if kind == "boxes":
        return CompetitionData(
            name=root.name,
            audio=root / "train",
            test=root / "test",
            template=root / "sample_submission.csv",
            boxes=(root / "train_tp.csv", root / "train_fp.csv"),
            truth=truth if truth.is_file() else None,
        )
    is_toy = (root / "train.csv").is_file()
    curated_folder, noisy_folder = ("train", "noisy") if is_toy else ("train_curated", "train_noisy")
    curated = read_clip_table(root / f"{curated_folder}.csv")
    curated = curated.assign(fname=f"{curated_folder}/" + curated["fname"], source="curated")
    noisy = read_clip_table(root / f"{noisy_folder}.csv")
    noisy = noisy.assign(fname=f"{noisy_folder}/" + noisy["fname"], source="noisy")
    both = pandas.concat([curated, noisy]).fillna("")
    write_text(out / "train.csv", both.to_csv(index=False, lineterminator="\n"))
    write_text(out / "curated.csv", curated.to_csv(index=False, lineterminator="\n"))
    return CompetitionData(
        name=root.name,
        audio=root,
        test=root / "test",
        template=root / "sample_submission.csv",
        table=out / "train.csv",
        curated=out / "curated.csv",
        truth=truth if truth.is_file() else None,
    )


def split_esc10(root: Path, out: Path) -> CompetitionData:
    """Return ESC-10 with folds 1 to 4 as training data, none of them noisy, and fold 5 as the test."""
    frame = read_clip_table(root / "labels.csv")
    is_test = frame["fold"] == 5
    train = frame[~is_test].drop(columns="fold").assign(source="curated")
    test = frame[is_test]
    write_text(out / "train.csv", train.to_csv(index=False, lineterminator="\n"))
    write_text(out / "test_truth.csv", test.to_csv(index=False, lineterminator="\n"))
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
            found |= {
                Path(folder, name) for name in names if name.startswith("fold_") and name.endswith(".pt")
            }
    return [path for path in sorted(found) if set(read_checkpoint(path)[0].classes) == wanted]
