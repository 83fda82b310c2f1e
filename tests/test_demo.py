import json

import pytest

from tubelet import demo


@pytest.mark.slow
def test_the_demo_goes_from_nothing_to_numbers_and_a_page(tmp_path):
    """The whole job at a size that learns nothing: every part runs, and every number is there with its interval."""
    out = tmp_path / "demo"
    demo.main(out, steps=10, clips=220, test=22, tuning_steps=4, seeds=2)
    results = json.loads((out / "results.json").read_text())
    assert results["chance"] == pytest.approx(1 / 11)
    for task, encoders in {
        "linear": {"videomae", "untrained", "one-frame"},
        "attentive": {"videomae", "untrained"},
        "finetune": {"videomae", "scratch"},
    }.items():
        assert encoders <= results[task].keys()
        for result in results[task].values():
            low, high = result["interval"]
            assert 0 <= low <= result["top1"] <= high <= 1
            assert [one["seed"] for one in result["seeds"]] == [0, 1]
    page = (out / "report.html").read_text()
    assert "data:video/mp4" in page
    assert "http://" not in page
