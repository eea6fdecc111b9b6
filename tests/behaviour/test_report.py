"""Runs side by side say what their folders hold: scores, costs, and only the settings that differ."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from kit.audio.frontend import FrontendConfig
from kit.core.errors import KitError
from kit.labels.bootstrap import bootstrap_difference, bootstrap_interval
from kit.labels.metrics import lwlrap
from kit.models.checkpoint import save_tagger, wrap_network
from kit.report import show

CLASSES = ("bark", "meow", "rain")
RECIPE = {"name": "small", "epochs": 4, "lr_peak": 0.005, "network": {"family": "pyramid", "width": 8}}


def truth_and_scores(seed, n=30, skill=1.0):
    """Clips of one label each, and scores that know it the better the more skill. Shape: (n, K), (n, K)"""
    truth = np.eye(3)[np.arange(n) % 3]
    return truth, np.clip(
        0.5 + 0.2 * skill * (truth - 0.5) + 0.15 * np.random.default_rng(seed).standard_normal((n, 3)), 0, 1
    )


def write_run(
    folder, scores=None, recipe=RECIPE, history="fold,seed,epoch,loss,lr,lwlrap,seconds\n", order=None
):
    """A run's folder by hand; rows of its CSVs in `order`."""
    folder.mkdir()
    order = range(30) if order is None else order
    table = [f"{i:03d}.wav,{CLASSES[i % 3]},{i % 2}" for i in order]
    (folder / "folds.csv").write_text("\n".join(["fname,labels,fold", *table, ""]))
    if recipe:
        (folder / "recipe.json").write_text(json.dumps(recipe))
    if scores is not None:
        rows = [f"{i:03d}.wav,{i % 2}," + ",".join(f"{p:.9g}" for p in scores[i]) for i in order]
        (folder / "oof.csv").write_text("\n".join([f"fname,fold,{','.join(CLASSES)}", *rows, ""]))
    if history:
        (folder / "history.csv").write_text(history)
    return str(folder)


def row_of(report, name):
    """The texts of one row."""
    return {row[0]: row[1:] for row in report.rows}[name]


def has_row(report, name):
    """Whether a row of this name is there."""
    return name in {row[0] for row in report.rows}


def test_scores_and_paired_differences_are_those_of_the_predictions_on_disk(tmp_path):
    truth, weak = truth_and_scores(0)
    _, strong = truth_and_scores(1, skill=3.0)
    backwards = list(range(29, -1, -1))
    report = show([write_run(tmp_path / "a", weak), write_run(tmp_path / "b", strong, order=backwards)])
    alone, gain = bootstrap_interval(lwlrap, truth, weak), bootstrap_difference(lwlrap, truth, strong, weak)
    assert row_of(report, "lwlrap")[0] == f"{alone.value:.4f} ({alone.low:.4f} to {alone.high:.4f})"
    assert row_of(report, "against the first") == (
        "-",
        f"{gain.value:.4f} ({gain.low:.4f} to {gain.high:.4f})",
    )
    assert gain.low > 0
    for fold in (0, 1):
        assert row_of(report, f"fold {fold}")[1] == f"{lwlrap(truth[fold::2], strong[fold::2]):.4f}"
    assert row_of(report, "top-1")[0] == f"{(weak.argmax(1) == truth.argmax(1)).mean():.4f}"
    assert row_of(report, "clips") == ("30", "30")


def test_only_settings_that_differ_are_listed(tmp_path):
    _, scores = truth_and_scores(0)
    other = RECIPE | {"lr_peak": 0.01, "network": {"family": "pyramid", "width": 16}, "extra": "new"}
    report = show([write_run(tmp_path / "a", scores), write_run(tmp_path / "b", scores, other)])
    assert row_of(report, "lr_peak") == ("0.005", "0.01")
    assert row_of(report, "network.width") == ("8", "16")
    assert row_of(report, "extra") == ("-", '"new"')
    assert not any(has_row(report, name) for name in ("name", "epochs_", "network.family"))
    assert not has_row(show([str(tmp_path / "a")]), "lr_peak")


def test_runs_on_other_clips_are_not_compared_clip_by_clip(tmp_path):
    _, scores = truth_and_scores(0)
    first, other = write_run(tmp_path / "a", scores), write_run(tmp_path / "b", scores, order=range(28))
    assert row_of(show([first, other]), "against the first")[1] == "other clips or labels"


def test_clips_of_several_labels_or_unknown_ones_have_no_top_1(tmp_path):
    _, scores = truth_and_scores(0)
    folder = write_run(tmp_path / "a", scores)
    table = tmp_path / "a" / "folds.csv"
    whole = table.read_text()
    table.write_text(whole.replace("000.wav,bark", '000.wav,"bark,meow"'))
    assert not has_row(show([folder]), "top-1")
    lines = [
        line + (",false_labels" if n == 0 else ",rain" if "rain" not in line else ",bark")
        for n, line in enumerate(whole.splitlines())
    ]
    table.write_text("\n".join([*lines, ""]))
    report = show([folder])
    assert not has_row(report, "top-1")
    assert has_row(report, "lwlrap")


def test_costs_are_read_from_histories_new_and_old(tmp_path):
    _, scores = truth_and_scores(0)
    epochs = ["0,0,1,.7,.1,,30", "0,0,2,.6,.1,.8,30", "1,0,1,.7,.1,.9,30", "all,0,1,.5,.1,,30"]
    new = "\n".join(["fold,seed,epoch,loss,lr,lwlrap,seconds", *epochs, ""])
    old = "fold,epoch,loss,lr,lwlrap\n0,1,.7,.1,\n0,2,.6,.1,.8\n"
    report = show(
        [write_run(tmp_path / "a", scores, history=new), write_run(tmp_path / "b", scores, history=old)]
    )
    assert row_of(report, "minutes") == ("2.0", "not told")
    assert row_of(report, "epochs") == ("2 1 1 of 4", "2 of 4")


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_goes(tmp_path):
    folder = write_run(tmp_path / "a", None, history=None)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    tagger = wrap_network(network, FrontendConfig(), CLASSES, output="ranking")
    object.__setattr__(tagger.card, "fold", 1)
    object.__setattr__(tagger.card, "oof_score", 0.75)
    save_tagger(tmp_path / "a" / "fold_1.pt", tagger)
    report = show([folder])
    assert row_of(report, "lwlrap") == ("not yet",)
    assert row_of(report, "fold 1") == ("0.7500",)
    assert row_of(report, "scores are") == ("ranking",)
    assert row_of(report, "parameters") == ("21",)


def test_a_stack_is_shown_beside_its_runs_without_settings(tmp_path):
    _, scores = truth_and_scores(0)
    stack = write_run(tmp_path / "s", scores, recipe=None, history=None)
    (tmp_path / "s" / "stack.json").write_text('{"settings": {"kind": "gated-mlp"}}')
    report = show([write_run(tmp_path / "a", scores), stack])
    assert row_of(report, "against the first")[1] == "0.0000 (0.0000 to 0.0000)"
    assert not has_row(report, "lr_peak")


def test_the_hardest_classes_come_first(tmp_path):
    truth, scores = truth_and_scores(0, skill=5.0)
    scores[2::3] = 1 - truth[2::3]  # rain is always last
    report = show([write_run(tmp_path / "a", scores)], hardest=2)
    assert report.rows[-2][0] == "class rain"
    assert row_of(report, "class rain") == ("0.3333",)
    assert not has_row(show([str(tmp_path / "a")], hardest=0), "class rain")


def test_stretches_of_a_clip_do_not_hide_its_own_row(tmp_path):
    truth, scores = truth_and_scores(0)
    folder = write_run(tmp_path / "a", scores)
    table = tmp_path / "a" / "folds.csv"
    head, *lines = table.read_text().splitlines()
    extra = [f"{i:03d}.wav,{CLASSES[(i + 1) % 3]},{i % 2},1.0,2.0" for i in range(5)]
    table.write_text("\n".join([head + ",begin_s,end_s", *(line + ",," for line in lines), *extra, ""]))
    assert row_of(show([folder]), "lwlrap")[0].startswith(f"{lwlrap(truth, scores):.4f}")


def test_learning_curves_are_drawn_and_a_wrong_ending_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    history = "fold,epoch,loss,lr,lwlrap\n0,1,.7,.1,\n0,2,.6,.1,.8\n1,1,.7,.1,.9\n"
    folders = [write_run(tmp_path / name, None, history=history) for name in "ab"]
    empty = write_run(tmp_path / "c", None, history=None)
    show([*folders, empty], out=tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(KitError, match=r"\.png"):
        show(folders, out=tmp_path / "curves.txt")


WEIRD = "<b>&\"amp;'$x$"


class Links(HTMLParser):
    """What a page refers to, the pictures that it holds, its tags and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.referred, self.alts, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.referred += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")
        ]
        self.alts += [value for name, value in attrs if name == "alt"]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.words.append(data)


def check_page(path):
    """The page as a reader parses it: it holds its pictures, and refers to nothing else."""
    text = path.read_text(encoding="utf-8")
    found = Links(text)
    assert found.referred and all(data.startswith("data:image/png;base64,") for data in found.referred)
    for data in found.referred:
        assert base64.b64decode(data.partition(",")[2], validate=True).startswith(b"\x89PNG")
    outside = re.sub(r'src="[^"]*"', "", text)
    assert "//" not in outside and "url(" not in outside and "@import" not in outside
    assert len(found.alts) == found.tags.count("img") and all(found.alts)
    assert not {"script", "link", "iframe", "b", "object"} & {*found.tags}
    return found, outside


def test_a_page_holds_its_pictures_runs_no_script_and_escapes_every_name(tmp_path):
    pytest.importorskip("matplotlib")
    _, scores = truth_and_scores(0)
    history = "fold,epoch,loss,lr,lwlrap\n0,1,.7,.1,\n0,2,.6,.1,.8\n"
    recipe = RECIPE | {"source": WEIRD}
    folder = write_run(tmp_path / "<b>&", scores, recipe, history)
    for name in ("folds.csv", "oof.csv"):
        path = tmp_path / "<b>&" / name
        path.write_text(path.read_text().replace("bark", '"' + WEIRD.replace('"', '""') + '"'))
    report = show([folder], tmp_path / "report.html")
    found, outside = check_page(tmp_path / "report.html")
    assert len(found.referred) == 5
    words = "".join(found.words)
    for row in report.rows:
        assert all(cell in words for cell in row)
    assert f"class {WEIRD}" in words and f"source{WEIRD}" in words.replace("\n", "")
    assert "prefers-color-scheme:dark" in outside and found.tags.count("details") == 1


def test_a_page_of_an_unfinished_run_says_what_is_not_there_yet(tmp_path):
    pytest.importorskip("matplotlib")
    empty = write_run(tmp_path / "a", None, history=None)
    _, scores = truth_and_scores(0)
    whole = write_run(tmp_path / "b", scores)
    show([empty, whole], tmp_path / "deep" / "page.html")
    found, _ = check_page(tmp_path / "deep" / "page.html")
    assert " ".join(found.words).count("no oof.csv yet") == 3
    assert found.tags.count("h2") == 2 and len(found.referred) == 1 + 1 + 4


def written_report(folder, **facts):
    """A submission's report, as submit leaves it."""
    models = [
        {
            "checkpoint": "<b>.pt",
            "weight": 0.5,
            "network_s": 1.25,
            "clips_predicted": 7,
            "failure": None,
            "spans": [[1.0, 2.0]],
        }
    ]
    told = {
        "kit": "1", "job": "x", "state": "finished", "rows": 8, "files_failed": {"<b>&.wav": "the file is <empty>"},
        "notes": ["1 of 8 rows has no file"], "models": models, "seconds_total": 3.0, "audio_s": 40.5,
        "spans": {"decode": [[0.0, 1.0]]}, "deadline_s": 4.0,
    }  # fmt: skip
    (folder / "sub.json").write_text(json.dumps(told | facts))
    return folder / "sub.csv"


def test_a_submission_is_told_in_a_table_its_timeline_and_a_page(tmp_path):
    pytest.importorskip("matplotlib")
    csv = written_report(tmp_path)
    for given in (str(csv), [csv], [str(csv.with_suffix(".json"))]):
        report = show(given)
        assert row_of(report, "rows") == ("8",) and row_of(report, "audio_s") == ("40.5",)
        assert row_of(report, "files_failed") == ("1",) and row_of(report, "rows_without_file") == ("0",)
        assert row_of(report, "<b>.pt")[0].startswith("weight 0.5, 1.2 s for 7 clips")
    show([csv], tmp_path / "page.html")
    found, _ = check_page(tmp_path / "page.html")
    words = "".join(found.words)
    for told in ("<b>&.wav", "the file is <empty>", "1 of 8 rows has no file", "<b>.pt"):
        assert told in words
    show([csv], tmp_path / "timeline.svg")
    assert b"<svg" in (tmp_path / "timeline.svg").read_bytes()


def test_what_is_no_submission_or_no_page_is_refused(tmp_path):
    with pytest.raises(KitError, match="no report beside"):
        show([tmp_path / "none.csv"])
    (tmp_path / "recipe.json").write_text('{"epochs": 3}')
    with pytest.raises(KitError, match="no report beside"):
        show(tmp_path / "recipe.json")
    csv = written_report(tmp_path)
    with pytest.raises(KitError, match=r"\.html"):
        show([csv], tmp_path / "page.htm")
    assert not (tmp_path / "page.htm").exists()
    with pytest.raises(KitError, match="holds no run"):
        show([csv, csv])


def test_a_submission_stopped_at_its_priors_is_shown_without_a_timeline(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "sub.json").write_text('{"job": "x", "state": "priors", "notes": []}')
    show(tmp_path / "sub.csv", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "no report that tells when" in text and "<img" not in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(KitError, match="holds no run"):
        show([tmp_path])
