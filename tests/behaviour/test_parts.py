"""What systems are composed of: every part is listed by its name, with a sentence of its own."""

from dataclasses import fields

import pytest

from kit.core.errors import KitError
from kit.infer.blend import BLENDS
from kit.models.families import FAMILIES
from kit.models.heads import POOLS, RECURRENCES
from kit.models.stackers import STACKERS
from kit.parts import PARTS, list_parts
from kit.train.losses import LOSSES
from kit.train.recipes import SYSTEMS

TABLES = {
    "systems": SYSTEMS, "families": FAMILIES, "heads": {**POOLS, **RECURRENCES}, "second-level": STACKERS,
    "losses": LOSSES, "blends": BLENDS,
}  # fmt: skip
WORDLESS = {"heads", "blends"}


def test_the_overview_names_every_part_of_every_kind():
    lines = dict(line.split(maxsplit=1) for line in list_parts().splitlines())
    assert {kind: names.split(", ") for kind, names in lines.items()} == {
        k: list(v) for k, v in PARTS.items()
    }
    for kind, table in TABLES.items():
        assert set(table) <= set(PARTS[kind])
    assert {"labels", "metrics"} <= set(PARTS)


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_says_what_it_is_in_one_line(kind):
    lines = list_parts(kind).splitlines()
    assert [line.split()[0] for line in lines] == list(PARTS[kind])
    for name, part in PARTS[kind].items():
        words = next(line for line in lines if line.split()[0] == name)[len(name) :].strip()
        assert "__init__" not in words and len(words) < 150
        if kind not in WORDLESS or name in ("gem", "attention", "positive-mean"):
            assert words, f"{name} says nothing"
        if kind in ("labels", "metrics"):
            assert part.__name__ == name


@pytest.mark.parametrize("config", [*PARTS["settings"].values(), *FAMILIES.values()])
def test_a_settings_class_tells_every_setting_with_its_default_and_its_meaning(config):
    name = next(n for kind in ("settings", "families") for n, c in PARTS[kind].items() if c is config)
    lines = list_parts(name).splitlines()
    for item in fields(config):
        line = next(line for line in lines if line.startswith(f"  {item.name} = "))
        assert item.metadata["help"] in line, line
        for choice in item.metadata.get("choices") or ():
            assert repr(choice) in line


def test_a_part_by_its_name_tells_everything():
    assert "smoothing: float = 0.0" in list_parts("bce") and "Source: smoothing .01" in list_parts("bce")
    assert "frontend.trim_db=60.0" in list_parts("skip-attention") and "ratio = 16" in list_parts(
        "skip-attention"
    )
    assert "new_scale, any_scale" in list_parts("rank")


def test_a_name_that_is_nowhere_is_told_the_near_ones_or_how_to_see_all():
    with pytest.raises(KitError, match=r"'bca': did you mean 'bce'\?$"):
        list_parts("bca")
    with pytest.raises(KitError, match=r"'\?\?\?': without a name, all are listed"):
        list_parts("???")


def test_a_kind_that_is_not_there_brings_the_right_names():
    with pytest.raises(KitError, match="did you mean 'losses'"):
        list_parts("loses")
