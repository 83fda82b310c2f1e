import sys
import xml.etree.ElementTree as ElementTree

import numpy
import pytest

from tubelet.report import figures
from tubelet.types import TubeletError

EVIL = "<script>alert('$x_1$')</script>"


def parsed(svg: str) -> ElementTree.Element:
    assert "http" not in svg
    assert figures.INK not in svg
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))


@pytest.mark.parametrize("number", [2, 20, 60, 400])
def test_confusion_for_few_and_many_classes(number):
    matrix = numpy.eye(number, dtype=int) * 3
    svg = figures.confusion(matrix.tolist(), [EVIL, *map(str, range(1, number))])
    texts = [element.text for element in parsed(svg).iter("text")]
    assert "<script>" not in svg
    assert (texts.count("100") > number / 2) == (number <= 20)  # one number for each class on the diagonal
    assert (figures.shorten(EVIL) in texts) == (number <= 60)


def test_an_empty_class_does_not_divide_by_zero():
    svg = figures.confusion([[0, 0], [1, 2]], ["a", "b"])
    parsed(svg)
    assert "nan" not in svg.lower()


@pytest.mark.parametrize("number", [1, 2, 20, 60])
def test_map_has_one_mark_a_clip(number):
    random = numpy.random.default_rng(0)
    labels = random.integers(-1, number, 80).tolist()
    picture = numpy.zeros((8, 8, 3), dtype=numpy.uint8)
    classes = [str(n) for n in range(number)]
    svg = figures.embedding_map(random.normal(size=(80, 2)), labels, classes, "PCA", {3: picture})
    root = parsed(svg)
    for label in set(labels):
        (group,) = (element for element in root.iter() if element.get("id") == f"map-{label}")
        assert sum(1 for _ in group.iter("use")) == labels.count(label)


def test_bars_show_numbers_and_seeds():
    result = {"top1": 0.713, "interval": [0.67, 0.75], "seeds": [0.70, 0.726]}
    svg = figures.bars({"linear": {"videomae": result, EVIL: {"top1": 0.457, "interval": [0.4, 0.5]}}}, 0.125)
    texts = [element.text for element in parsed(svg).iter("text")]
    assert {"71.3", "45.7", "linear", "chance (12.5 %)"} <= set(texts)


def test_curves_and_bytes_are_the_same_again():
    steps = list(range(100))
    draw = lambda: figures.curve("Loss", {"loss": (steps, [1 / (s + 1) for s in steps])}, "loss", smooth=True)  # noqa: E731
    parsed(draw())
    assert draw() == draw()


def test_running_mean_does_not_shift():
    ramp = numpy.arange(10.0)
    assert numpy.allclose(figures.running_mean(ramp, 4)[2:-2], ramp[2:-2])
    assert numpy.allclose(figures.running_mean(numpy.ones(5), 50), 1)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(TubeletError, match=r"pip install 'tubelet\[viz\]'"):
        figures.curve("Loss", {}, "loss")
