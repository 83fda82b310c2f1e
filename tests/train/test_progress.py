from __future__ import annotations

from types import SimpleNamespace

import pytest

from tubelet.train.progress import Progress, Stretch, advice


def test_a_stretch_knows_how_much_of_its_time_was_spent_waiting():
    clock, loader = SimpleNamespace(step=4, seconds=10.0), SimpleNamespace(waited_s=3.0)
    stretch = Stretch(clock, loader)
    assert stretch.waiting(clock, loader) == 0
    clock.step, clock.seconds, loader.waited_s = 8, 20.0, 9.0
    stretch.add({"main": SimpleNamespace(loss=2.0, grad_norm=1.0, metrics={})})
    summary = stretch.summary(clock, loader, batch=16)
    assert summary["waiting"] == pytest.approx(0.6)
    assert (summary["clips_per_s"], summary["loss"]) == (pytest.approx(6.4), 2.0)


def test_each_of_several_phases_has_numbers_of_its_own():
    """Fails when a critic's loss and its generator's are told as one number alone."""
    clock, loader = SimpleNamespace(step=0, seconds=0.0), SimpleNamespace(waited_s=0.0)
    stretch = Stretch(clock, loader)
    for seen in (1.0, 2.0):
        critic = SimpleNamespace(loss=seen, grad_norm=0.5, metrics={"accuracy": 0.9, "update_ratio": 0.01})
        generator = SimpleNamespace(loss=7.0, grad_norm=1.5, metrics={"update_ratio": 0.03})
        stretch.add({"critic": critic, "generator": generator})
    summary = stretch.summary(clock, loader, batch=4)
    assert {name: summary[name] for name in ("loss", "loss_critic", "loss_generator")} == {
        "loss": 4.25, "loss_critic": 1.5, "loss_generator": 7.0
    }  # fmt: skip
    assert (summary["grad_norm_critic"], summary["grad_norm_generator"]) == (0.5, 1.5)
    assert (summary["update_ratio"], summary["update_ratio_critic"]) == (pytest.approx(0.02), 0.01)
    assert summary["accuracy"] == 0.9 and "accuracy_critic" not in summary


def test_advice_says_what_binds_and_what_to_change():
    assert advice(0.05, 1, 8) == "compute-bound: 5 % of the time is spent waiting for clips"
    few = advice(0.6, 2, 8)
    assert few.startswith("decode-bound: 60 %") and "train.workers (now 2, and there are 8 cores)" in few
    assert "tubelet data pack" in few and "data.repeats" in few
    assert "train.workers" not in advice(0.6, 8, 8)


@pytest.mark.parametrize(("waited_s", "said"), [(60.0, "decode-bound (100 % waiting)"), (0.0, "compute-bound (0 %")])
def test_the_line_of_progress_says_what_binds(capsys, waited_s, said):
    with Progress(total=10, done=0, batch=4, quiet=False) as bar:
        bar.show(10, 0.5, waited_s)
    assert said in capsys.readouterr().err


def test_the_line_of_progress_is_of_the_last_steps(capsys):
    with Progress(total=1000, done=0, batch=4, quiet=False) as bar:
        for step in range(1, 101):
            bar.show(step, 0.5, 60.0)  # all the waiting was at the beginning
    assert "compute-bound (0 % waiting)" in capsys.readouterr().err
