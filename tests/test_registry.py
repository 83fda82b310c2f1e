import inspect
from typing import Literal

import pytest

from tubelet import registry
from tubelet.types import TubeletError


def test_every_registered_name_is_found_and_has_a_docstring():
    for folder in ("methods", "backbones", "tasks", "data/formats"):
        assert registry.names(folder)
        for name, place in registry.catalogue(folder).items():
            assert registry.find(folder, name).registered_name == name
            assert registry.schema(*place).__doc__


def test_schema_is_the_signature_without_what_no_recipe_can_write():
    real = registry.find("methods", "videomae")
    stand_in = inspect.signature(registry.schema(*registry.place("methods", "videomae")))
    own = inspect.signature(real.__init__)
    assert set(stand_in.parameters) == set(own.parameters) - {"self", "backbone"}
    assert all(p.default == own.parameters[name].default for name, p in stand_in.parameters.items())


SOURCE = '''
from __future__ import annotations

SHAPES = ("disc", "star")


class Thing:
    """A thing."""

    def __init__(self, model: Model, count: int | None = None, kind: Literal["a", "b"] = "a",
                 span: tuple[float, float] = (0.5, 1.0), shapes: tuple[str, ...] = SHAPES, *, scale: float = -1.0):
        pass
'''


DATACLASS = """
from dataclasses import dataclass

@dataclass
class Corpus:
    clips: int
    noise: float = 0.5
    def side(self): pass
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGE", tmp_path)
    (tmp_path / "things.py").write_text(SOURCE, encoding="utf-8")


def test_schema_reads_types_and_defaults_from_source(source):
    parameters = inspect.signature(registry.schema("tubelet.things", "Thing")).parameters
    assert list(parameters) == ["count", "kind", "span", "shapes", "scale"]
    assert parameters["count"].annotation == int | None
    assert parameters["kind"].annotation == Literal["a", "b"]
    assert parameters["span"].annotation == tuple[float, float]
    assert parameters["span"].default == (0.5, 1.0)
    assert parameters["shapes"].annotation == tuple[str, ...]
    assert parameters["shapes"].default == ("disc", "star")
    assert parameters["scale"].default == -1.0


def test_schema_of_a_dataclass_is_its_fields(source, tmp_path):
    (tmp_path / "corpora.py").write_text(DATACLASS, encoding="utf-8")
    parameters = inspect.signature(registry.schema("tubelet.corpora", "Corpus")).parameters
    assert list(parameters) == ["clips", "noise"] and parameters["noise"].default == 0.5
    assert parameters["clips"].default is inspect.Parameter.empty


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(TubeletError, match="no method is called 'videoame'; did you mean 'videomae'"):
        registry.place("methods", "videoame")
