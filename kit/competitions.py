"""Find a competition's data, or make toy data."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kit.core.errors import choose
from kit.core.files import write_text
from kit.labels.table import class_names, classes_of_template, read_clip_table
from kit.models.checkpoint import read_checkpoint
from kit.toydata import make_toy_set, make_toy_soundscapes, write_zeros

INPUTS = Path("/kaggle/input")
MARKS = {"clips": "train_curated.csv", "boxes": "train_tp.csv"}
NOT_STUDENTS = {"rounds", "strict", "state"}


@dataclass(frozen=True)
class CompetitionData:
    """What self_train and submit take, and the test's `truth` where it is known.

    Clips have a `table` whose `source` is curated or noisy, and `curated`, the table without noisy ones; soundscapes
    have `boxes`, of true and of false ones.
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
        """Those of the template."""
        return classes_of_template(self.template)

    def __str__(self) -> str:
        tables = filter(None, (self.table, *(self.boxes or ())))
        rows = [f"{len(path.read_text('utf-8').splitlines()) - 1:,} rows in {path.name}" for path in tables]
        told = ", ".join([*rows, f"{len(self.classes)} classes"])
        return f"{self.name}: {told}; audio in {self.audio}, test in {self.test}"

    __repr__ = __str__


def find_data(kind: str, room: str | Path, toy: int = 0, inputs: str | Path = INPUTS) -> CompetitionData:
    """A competition's data as Kaggle attaches them; else, for clips, ESC-10 in shared/data/esc10 of a folder above the
    room; else toy data, made in the room. Tables are written to the room.

    Options:
        kind: clips, as Freesound Audio Tagging 2019 has them, or boxes, as RFCX Species Audio Detection
        room: the folder to write to
        toy: make so many training clips or recordings, whatever there is
        inputs: the folder where data are attached
    """
    mark, home, n = choose("kind of data", kind, MARKS), Path(room), toy or 120
    marked = [path for depth in ("*", "*/*") for path in sorted(Path(inputs).glob(f"{depth}/{mark}"))]
    real = [folder / "shared" / "data" / "esc10" for folder in home.resolve().parents]
    real = [folder for folder in real if kind == "clips" and (folder / "labels.csv").is_file()]
    if marked and not toy:
        return read_layout(kind, marked[0].parent, home)
    if real and not toy:
        return split_esc10(real[0], home)
    made = home / f"toy_{kind}_{n}"
    if kind == "boxes":
        make_toy_soundscapes(made, n, n // 2)
    else:
        make_toy_set(made, n, n // 2, noisy=n)
    return read_layout(kind, made, home)


def read_layout(kind: str, root: Path, room: Path) -> CompetitionData:
    """The data of a folder that is laid out as Freesound 2019, as the toy set, or as RFCX."""
    import pandas

    test, template, truth = root / "test", root / "sample_submission.csv", root / "test_truth.csv"
    known = truth if truth.is_file() else None
    if kind == "boxes":
        boxes = root / "train_tp.csv", root / "train_fp.csv"
        return CompetitionData(root.name, root / "train", test, template, boxes=boxes, truth=known)
    folders = ("train", "noisy") if (root / "train.csv").is_file() else ("train_curated", "train_noisy")
    parts = []
    for source, folder in zip(("curated", "noisy"), folders, strict=True):
        part = read_clip_table(root / f"{folder}.csv")
        parts.append(part.assign(fname=f"{folder}/" + part["fname"], source=source))
    table, curated = room / "train.csv", room / "curated.csv"
    for path, frame in ((table, pandas.concat(parts).fillna("")), (curated, parts[0])):
        write_text(path, frame.to_csv(index=False, lineterminator="\n"))
    return CompetitionData(root.name, root, test, template, table, curated, truth=known)


def split_esc10(root: Path, room: Path) -> CompetitionData:
    """ESC-10's folds 1 to 4 to learn from, none of them noisy, and fold 5 as the test."""
    frame, table = read_clip_table(root / "labels.csv"), room / "train.csv"
    test, template, truth = frame[frame["fold"] == 5], room / "sample_submission.csv", room / "test_truth.csv"
    train = frame[frame["fold"] != 5].drop(columns="fold").assign(source="curated")
    for path, part in ((table, train), (truth, test)):
        write_text(path, part.to_csv(index=False, lineterminator="\n"))
    write_zeros(room, [("fname",), *zip(test["fname"], strict=True)], class_names(frame["labels"]))
    audio = root / "audio"
    return CompetitionData("ESC-10", audio, audio, template, table, table, None, "source_id", truth)


def fitting_checkpoints(classes: Iterable[str], places: Iterable[str | Path]) -> list[Path]:
    """The folds below some folders that know just these classes, without teachers of rounds and states of training.

    Options:
        classes: their names, in any order
        places: folders
    """
    found = sorted({path for place in places for path in Path(place).rglob("fold_*.pt")})
    students = [path for path in found if not NOT_STUDENTS & {*path.parts}]
    return [path for path in students if {*read_checkpoint(path)[0].classes} == {*classes}]
