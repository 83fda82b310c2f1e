"""`lightly`, a public implementation of losses, without torchvision, which it imports and its losses do not use."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest


class Absent(MetaPathFinder, Loader):
    """Stands in for packages that are imported for classes to inherit from, and gives an empty class for any name."""

    def __init__(self, *packages: str) -> None:
        self.packages = packages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in self.packages else None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = lambda name: type(name, (), {})


def lightly_losses() -> ModuleType:
    """``lightly.loss``; a test without it is skipped."""
    absent = Absent("torchvision")
    sys.meta_path.insert(0, absent)
    try:
        return pytest.importorskip("lightly.loss")
    finally:
        sys.meta_path.remove(absent)
        for name in [name for name in sys.modules if name.split(".")[0] in absent.packages]:
            del sys.modules[name]
