"""A list of corrections in, as JSON or CSV, a clip table with those clips relabelled or dropped out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.core.csvtext import read_table
from kit.core.errors import KitError, closest
from kit.labels.table import ALL_OTHERS, class_names, split_labels


def read_corrections(path: str | Path) -> dict[str, str | None]:
    """The new labels of each clip, None to drop it: JSON `{"a.wav": "Bark,Meow", "b.wav": null}`, or CSV
    `fname,labels[,drop]`, where 1 in `drop` drops.

    Source: first place, Freesound 2019 (lists that drop or correct clips which earlier models score badly)
    """
    pairs: Any = []
    if Path(path).suffix.lower() == ".json":
        try:
            pairs = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=list)
        except (OSError, ValueError) as error:
            raise KitError(f"cannot read the corrections {path}: {error}.") from error
    else:
        table = read_table(path, ("fname", "labels"))
        names, labels = table.columns["fname"], table.columns["labels"]
        drops = table.columns.get("drop", [""] * len(names))
        for row, (name, text, drop) in enumerate(zip(names, labels, drops, strict=True)):
            if drop not in ("", "0", "1") or (drop == "1" and text.strip()):
                raise KitError(f"{table.at(row)}: drop is {drop!r}, wanted 1 without labels, or labels.")
            pairs.append((name, None if drop == "1" else text))
    found: dict[str, str | None] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        name, text = pair if isinstance(pair, tuple) else ("", pair)
        if not name or name in found or not isinstance(text, str | None):
            raise KitError(
                f"{path} corrects {name!r} to {text!r}, wanted labels or null for each clip, once."
            )
        found[name] = text
    return found


def apply_corrections(table: Any, corrections: Mapping[str, str | None]) -> Any:
    """The table with its corrected clips: their labels are complete then, and dropped ones are gone.

    Errors: KitError for clips that the table lacks, labels that none of its clips has, and no clip left
    """
    known, there = class_names([*table["labels"], *table.get("false_labels", ())]), {*table["fname"]}
    for name, text in corrections.items():
        if name not in there:
            raise KitError(f"the corrected clip {name!r} is not in the table of {len(there)} clips.")
        for label in {*split_labels(text or "")}.difference(known):
            raise KitError(f"{name!r} is corrected to a new label {label!r}: {closest(label, known)}.")
    changed = table[[corrections.get(name, "") is not None for name in table["fname"]]].reset_index(drop=True)
    if not len(changed):
        raise KitError("the corrections drop every clip of the table.")
    for row in changed.index[changed["fname"].isin([*corrections])]:
        new = {"labels": corrections[changed["fname"][row]], "false_labels": ALL_OTHERS}
        for column in new.keys() & {*changed}:
            changed.loc[row, column] = new[column]
    return changed
