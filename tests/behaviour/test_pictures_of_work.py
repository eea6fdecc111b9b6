"""Pictures of rounds and of a submission: scores by the labels as given, and spans that add up to the seconds."""

import json
import time
from itertools import pairwise

import numpy as np
import pytest

from kit.core.clock import Deadline, Stopwatch
from kit.core.errors import KitError
from kit.infer.job import SubmitJob, SubmitOptions
from kit.infer.submit import submit
from kit.labels.metrics import lwlrap
from kit.plots.runs import draw_self_training, draw_timeline
from kit.train.oof import load_run

pytest.importorskip("matplotlib")

CLASSES = ("bark", "meow", "rain")


def write_tables(folder, labels, scores=None):
    """folds.csv and, with scores, oof.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{i:02d}.wav,{label},{i % 2}" for i, label in enumerate(labels)]
    (folder / "folds.csv").write_text("\n".join(["fname,labels,fold", *rows, ""]))
    if scores is not None:
        rows = [f"{i:02d}.wav,{i % 2},{','.join(map(str, row))}" for i, row in enumerate(scores)]
        (folder / "oof.csv").write_text("\n".join([f"fname,fold,{','.join(CLASSES)}", *rows, ""]))


def write_rounds(folder, rounds=2):
    """A run after rounds of relabelling whose tables know other labels each; what each round believed."""
    rng, given = np.random.default_rng(0), [CLASSES[i % 3] for i in range(24)]
    scores = rng.random((rounds + 1, 24, 3)).round(6)
    write_tables(folder / "rounds", given)
    for r in range(rounds + 1):
        other = [CLASSES[(i + r) % 3] for i in range(24)]
        write_tables(folder if r == rounds else folder / "rounds" / str(r), other, scores[r])
    for r in range(1, rounds + 1):
        labels = folder / "rounds" / str(r) / "labels"
        labels.mkdir(parents=True, exist_ok=True)
        report = {"method": "agreement", "counts": {"kept": 10 * r, "left_out": 24 - 10 * r}}
        (labels / "relabel.json").write_text(json.dumps(report))
    return np.eye(3)[np.arange(24) % 3], scores


def test_every_round_is_scored_by_the_labels_as_they_were_given(tmp_path):
    truth, scores = write_rounds(tmp_path / "run")
    left, right = draw_self_training(tmp_path / "run").figure.axes
    expected = [(r, lwlrap(truth, said)) for r, said in enumerate(scores)]
    np.testing.assert_allclose(left.lines[0].get_xydata(), expected, rtol=1e-6)
    counts = {line.get_label(): line.get_xydata().tolist() for line in right.lines}
    assert counts == {"kept": [[1, 10], [2, 20]], "left_out": [[1, 14], [2, 4]]}
    own = load_run(tmp_path / "run")
    assert lwlrap(own.truth, own.scores) != pytest.approx(expected[2][1])


def test_rounds_are_shown_as_far_as_they_went_and_their_lack_is_told(tmp_path):
    write_rounds(tmp_path / "run")
    (tmp_path / "run" / "oof.csv").unlink()
    left, _ = draw_self_training(tmp_path / "run").figure.axes
    assert left.lines[0].get_xdata().tolist() == [0, 1] and left.get_xticks().tolist() == [0, 1, 2]
    write_tables(tmp_path / "plain", ["bark"] * 4, np.zeros((4, 3)))
    for folder in (tmp_path / "plain", tmp_path / "nothing"):
        with pytest.raises(KitError, match="holds no rounds"):
            draw_self_training(folder)


def test_what_is_measured_has_spans_that_never_overlap_and_add_up_to_its_seconds():
    watch = Stopwatch(time.perf_counter() - 1.0)
    for i in range(3000):
        with watch.measure(("decode", "network")[i % 2]):
            if i % 500 < 3:
                sum(range(20_000))
    assert set(watch.spans) == {"decode", "network"}
    for name, spans in watch.spans.items():
        assert sum(b - a for a, b in spans) == pytest.approx(watch.seconds[name], rel=1e-9)
        assert all(a <= b for a, b in spans)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        assert len(spans) < 500
        assert spans[0][0] >= 0 and spans[-1][1] <= time.perf_counter() - watch.began


def test_far_spans_stay_apart_and_near_ones_become_one():
    watch = Stopwatch()
    for _ in range(100):
        with watch.measure("near"):
            sum(range(2000))
    watch.began -= 100.0  # as if all of this were 100 s later
    with watch.measure("near"):
        pass
    assert len(watch.spans["near"]) > 1
    later = Stopwatch(time.perf_counter() - 1000.0)
    for _ in range(100):
        with later.measure("near"):
            sum(range(2000))
    assert len(later.spans["near"]) == 1
    assert later.spans["near"][0][0] == pytest.approx(1000, abs=5)


def lanes_of(drawing):
    """The label of each lane and its spans, from the top."""
    axes = drawing.figure.axes[0]
    names = [label.get_text().partition("  ")[2] for label in axes.get_yticklabels()]
    lanes = [
        sorted((path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in lane.get_paths())
        for lane in axes.collections
    ]
    return list(zip(names, lanes, strict=True)), axes


@pytest.mark.usefixtures("one_core")
def test_a_submission_reports_when_it_did_what(trained, clips, tmp_path):
    out = tmp_path / "submission.csv"
    report = submit(trained.all, clips, out, progress=False).report
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["spans"] == report["spans"] and told["deadline_s"] is None
    assert set(told["spans"]) == {"headers", "models", "decode", "frontend", "network", "write"}
    for name, spans in told["spans"].items():
        assert sum(b - a for a, b in spans) == pytest.approx(
            told["seconds"][name], abs=0.001 * (len(spans) + 1)
        )
        assert spans[-1][1] <= told["seconds_total"] + 0.5
    for model in told["models"]:
        heard = sum(b - a for a, b in model["spans"])
        assert heard == pytest.approx(model["network_s"], abs=0.001 * (len(model["spans"]) + 1))
    first = min(model["spans"][0][0] for model in told["models"])
    assert first == pytest.approx(told["spans"]["network"][0][0], abs=0.002)
    for given in (out, str(out.with_suffix(".json")), report):
        lanes, axes = lanes_of(draw_timeline(given))
        assert [name for name, _ in lanes] == [
            "read headers", "build models", "decode", "front end",
            *(m["checkpoint"] for m in sorted(told["models"], key=lambda m: m["spans"])), "write CSV",
        ]  # fmt: skip
        np.testing.assert_allclose(dict(lanes)["decode"], told["spans"]["decode"])
        np.testing.assert_allclose(dict(lanes)["write CSV"], told["spans"]["write"])
        assert not axes.lines and f"{told['seconds_total']:.1f} s" in axes.get_title()


def made_report(**facts):
    """A small submission's report."""
    spans = {"headers": [[0.1, 0.2]], "decode": [[0.3, 1.0], [2.0, 3.0]], "network": [[1.0, 2.0]]}
    models = [{"checkpoint": "fold_0.pt", "spans": []}, {"checkpoint": "fold_0.pt", "spans": [[1.0, 2.0]]}]
    told = {"state": "finished", "spans": spans, "models": models, "seconds_total": 4.0, "deadline_s": None}
    return told | facts


def test_the_deadline_is_a_line_where_it_is_near():
    axes = draw_timeline(made_report(deadline_s=5.0)).figure.axes[0]
    assert axes.lines[0].get_xdata() == [5.0, 5.0] and "of 5.0 s to the deadline" in axes.get_title()
    axes = draw_timeline(made_report(deadline_s=3300.0)).figure.axes[0]
    assert not axes.lines and axes.get_xlim()[1] < 10 and "of 3300.0 s" in axes.get_title()
    lanes, axes = lanes_of(draw_timeline(made_report()))
    assert lanes[2] == ("decode", [(0.3, 1.0), (2.0, 3.0)])
    assert lanes[4:] == [("fold_0.pt", []), ("fold_0.pt", [(1.0, 2.0)]), ("write CSV", [])]


def test_a_report_without_times_is_told_apart(tmp_path):
    with pytest.raises(KitError, match="no report that tells when"):
        draw_timeline(tmp_path / "none.csv")
    with pytest.raises(KitError, match="submit again"):
        draw_timeline({"state": "priors", "job": "1", "notes": []})


def test_the_deadline_is_told_from_where_spans_begin(trained, clips, tmp_path):
    options = SubmitOptions([trained.mel[0]], clips, tmp_path / "a.csv")
    kill_at, stop_at = (Deadline(at, lambda: 1000.0) for at in (1058.5, 1057.0))
    assert SubmitJob(options, stop_at, kill_at).deadline_s == 60.0
    assert SubmitJob(options, stop_at).deadline_s == 57.0
    assert SubmitJob(options, Deadline()).deadline_s is None
