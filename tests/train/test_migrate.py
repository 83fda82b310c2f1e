"""Runs of an earlier Tubelet go on: the folder `golden/format_1` was written by it, three steps of six."""

import shutil
from pathlib import Path

import pytest

from saved import newest
from tubelet import cli
from tubelet.log import read_metrics

OLD = Path(__file__).parents[1] / "golden" / "format_1"
LOSSES = [1.2182859182357788, 1.2073040008544922, 1.203413724899292, 1.1922593116760254, 1.211670160293579,
          1.2086377143859863]  # fmt: skip
"""Of the whole run, by the Tubelet that wrote the folder."""


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


@pytest.fixture
def old(corpus, tmp_path) -> Path:
    """The old run, with its manifest where it is now."""
    shutil.copytree(OLD, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("clips.csv", str(corpus)))
    return tmp_path / "run"


def test_a_run_of_format_1_goes_on_as_if_nothing_had_changed(old, capsys):
    """Fails without `migrate` (starts at step 0), and when the optimiser's averages are given to other weights."""
    before = (old / "checkpoint.pt").read_bytes()
    assert cli.main(["train", str(old), "--train.quiet", "true"]) == 0, capsys.readouterr().err
    assert "earlier Tubelet: going on from it (step 3)" in capsys.readouterr().err
    assert losses(old) == pytest.approx(LOSSES, rel=1e-5)
    assert newest(old).facts["step"] == 6
    assert (old / "checkpoint.pt").read_bytes() == before


def test_a_damaged_one_of_format_1_is_not_taken_for_a_new_run(old, capsys):
    (old / "checkpoint.pt").write_bytes((old / "checkpoint.pt").read_bytes()[:5000])
    assert cli.main(["train", str(old)]) == 1
    assert "no readable checkpoint" in capsys.readouterr().err
    shutil.copy(OLD / "checkpoint.pt", old / "previous-checkpoint.pt")
    assert cli.main(["train", str(old), "--train.quiet", "true"]) == 0
    assert losses(old) == pytest.approx(LOSSES, rel=1e-5)


def test_a_newer_format_is_refused_and_left_alone(old, capsys):
    assert cli.main(["train", str(old), "--train.quiet", "true"]) == 0
    place = newest(old).folder
    from tubelet.train.checkpoints import FACTS, SUMS, checksum

    facts = (place / FACTS).read_text().replace('"format": 2', '"format": 3')
    (place / FACTS).write_text(facts)
    lines = [line for line in (place / SUMS).read_text().splitlines() if not line.endswith(FACTS)]
    (place / SUMS).write_text("\n".join([*lines, f"{checksum(place / FACTS)}  {FACTS}"]) + "\n")
    assert cli.main(["train", str(old)]) == 1
    assert "has format 3, this Tubelet reads up to 2: upgrade Tubelet" in capsys.readouterr().err
