import csv
import io
import itertools
import json
import re
import shlex

import pytest

from tubelet import recipe
from tubelet.ablate import figure, summary
from tubelet.ablate.plan import split_words


def row(name, published, values, x=None, errors=(), untrained="not pre-trained"):
    spreads = summary.paired_spread(list(values.values())) if values else None
    return {
        "name": name, "untrained": untrained, "x": x, "published": published,
        "values": {"knn": {str(k): v for k, v in values.items()}},
        "mean": {"knn": spreads["mean"]} if spreads else {}, "std": {"knn": spreads["std"]} if spreads else {},
        "steps": 3, "clips": 12, "epochs": 1.0, "videos": 12, "seconds": 1.5, "errors": list(errors),
    }  # fmt: skip


def made(rows, axis=None):
    return {
        "table": "mask", "title": "Kind of mask", "paper": "1b", "note": "A note.", "axis": axis,
        "baseline": "not pre-trained", "recipe": "tiny", "options": ["--data.size", "16"], "tasks": {"knn": {"k": 3}},
        "labels_per_class": 5, "seeds": [0, 1], "columns": ["knn"], "numbers": {"knn": "top1"},
        "published": {"measure": "SSv2, top-1 %", "source": "a paper", "also": [{"name": "more", "value": 12.5}]},
        "rows": rows, "agreement": {"knn": summary.agreement(rows, "knn")}, "failed": ["tube: no"], "missing": 1,
    }  # fmt: skip


def slow_tau(first, second):
    """Kendall's tau-b from its definition: concordant, discordant and tied pairs counted one by one."""
    concordant = discordant = first_tied = second_tied = 0
    for (a, b), (c, d) in itertools.combinations(zip(first, second, strict=True), 2):
        concordant += (a < c and b < d) or (a > c and b > d)
        discordant += (a < c and b > d) or (a > c and b < d)
        first_tied += a == c and b != d
        second_tied += b == d and a != c
    either = concordant + discordant
    return (concordant - discordant) / ((either + second_tied) * (either + first_tied)) ** 0.5


@pytest.mark.parametrize(
    ("ours", "tau"), [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], -1.0), ([1, 3, 2, 4], 4 / 6), ([2, 2, 3, 1], None)]
)
def test_kendalls_tau_is_that_of_its_definition(ours, tau):
    theirs = [10, 20, 30, 40]
    assert summary.kendall(theirs, ours) == pytest.approx(slow_tau(theirs, ours))
    if tau is not None:
        assert summary.kendall(theirs, ours) == pytest.approx(tau)


def test_kendalls_tau_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    first, second = [1, 2, 2, 5, 4, 4], [3, 1, 2, 2, 9, 8]
    assert summary.kendall(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)


def test_tau_is_not_defined_where_all_are_equal_though_for_a_last_bit():
    assert summary.kendall([1, 2, 3], [0.3, 0.1 + 0.2, 0.3]) is None


@pytest.mark.parametrize(
    ("theirs", "ours", "spread", "verdict"),
    [(2, 1, 0.5, "agrees"), (-2, 1, 0.5, "disagrees"), (2, 0.5, 1, "within the spread"), (2, 0, 0, "within the spread"),
     (2, 5, None, "unknown: one seed")],
)  # fmt: skip
def test_a_difference_counts_when_it_is_larger_than_its_spread(theirs, ours, spread, verdict):
    assert summary.judge(theirs, ours, spread) == verdict


def test_pairs_are_compared_seed_by_seed():
    """Seed 1 is easier for both rows by 10: their difference has no spread."""
    rows = [row("a", 60.0, {0: 20.0, 1: 30.0, 2: 99.0}), row("b", 62.0, {0: 24.0, 1: 34.0}), row("c", None, {0: 1.0})]
    found = summary.agreement(rows, "knn")
    assert found["tau"] == -1.0  # by their means
    assert found["pairs"] == [{"rows": ["a", "b"], "published": 2.0, "ours": 4.0, "spread": 0.0, "verdict": "agrees"}]
    assert summary.agreement(rows[1:], "knn") is None


def test_files_hold_every_number(tmp_path):
    untrained = row("not pre-trained", None, {0: 10.0})
    rows = [untrained, row("tube", 69.6, {0: 50.0, 1: 54.0}), row("frame", 61.5, {0: 40.0})]
    paths = summary.write(made(rows), tmp_path)
    assert [path.name for path in paths] == ["mask.json", "mask.csv", "mask.md", "mask.png"]
    assert json.loads(paths[0].read_text())["rows"] == rows
    lines = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert [(line["row"], line["seed"], float(line["value"])) for line in lines] == [
        ("not pre-trained", "0", 10.0), ("tube", "0", 50.0), ("tube", "1", 54.0), ("frame", "0", 40.0),
    ]  # fmt: skip
    text = paths[2].read_text()
    for part in ("table 1b", "A note.", "`tiny`", "--data.size 16", "--knn.k 3", "5 labels a class", "a paper",
                 "| tube | 69.6 | 52.0 ± 2.8 |", "published only: more", "| tube → frame | -8.1 |", "tube: no",
                 "1 judgements are missing"):  # fmt: skip
        assert part in text
    assert paths[3].read_bytes().startswith(b"\x89PNG")


def test_options_can_be_pasted_into_a_shell():
    about = made([row("tube", 69.6, {0: 50.0})])
    words = ["--train.length", "4 steps", "--data.manifest=my clips.csv"]
    tasks = {"finetune": {"lrs": [0.01, 0.1], "length": "10 epochs"}, "knn": {"k": 3}}
    told = summary.as_markdown(about | {"options": words, "tasks": tasks})
    _, options, given = [shlex.split(code) for code in re.findall("`(.*?)`", told)]
    assert options == words
    _, of_tasks = split_words(given)
    assert recipe.task_options(list(tasks), of_tasks) == tasks


def test_a_figure_begins_at_nought_however_wide_the_spread(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **how: drawn.append(self))
    untrained = row("not pre-trained", None, {0: 10.0})
    wide, other = (row(name, None, {0: 1.0, 1: 60.0}, x=x) for name, x in (("1/2", 4.0), ("all", 8.0)))
    assert wide["mean"]["knn"] < wide["std"]["knn"]
    figure.draw(made([untrained, wide, other]), tmp_path / "a.png")
    figure.draw(made([untrained, wide, other], axis="epochs"), tmp_path / "b.png")
    lines, curve = (one.axes[0] for one in drawn)
    assert lines.get_xlim()[0] == curve.get_ylim()[0] == 0.0
    assert lines.get_xlim()[1] > 60 and curve.get_ylim()[1] > 60


def test_nothing_and_what_failed_are_to_be_seen(tmp_path, monkeypatch):
    """Fails where the axis cuts a point at 0, or where a row that failed is an empty line."""
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **how: drawn.append(self))
    rows = [row("nothing", None, {0: 0.0}), row("all", None, {0: 100.0}), row("lost", None, {}, errors=["no"])]
    figure.draw(made(rows), tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert axes.get_xlim()[0] <= -5
    (said,) = [text for text in axes.texts if text.get_text() == "failed"]
    assert said.get_position()[1] == 2


def test_a_figure_gives_ours_and_the_published_numbers_a_panel_each(tmp_path, monkeypatch):
    """Neither shares the scale of the other, and the untrained network is a line, not a row."""
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **how: drawn.append(self))
    rows = [row("not pre-trained", None, {0: 10.0}), row("tube", 69.6, {0: 50.0}), row("frame", 61.5, {0: 40.0})]
    figure.draw(made(rows), tmp_path / "a.png")
    ours, theirs = drawn[0].axes
    assert [label.get_text() for label in ours.get_yticklabels()] == ["tube", "frame"]
    assert ours.get_xlim()[1] < 60 < theirs.get_xlim()[0] + 2
    assert ours.get_title() == "ours: knn" and theirs.get_title() == "published: SSv2"
    curve = [row("1/2", None, {0: 40.0}, x=4.0), row("all", None, {0: 50.0}, x=8.0), row("lost", None, {}, x=2.0)]
    figure.draw(made(curve, axis="epochs"), tmp_path / "b.png")
    (only,) = drawn[1].axes
    assert only.get_xlabel() == "epochs" and only.get_xscale() == "log"
