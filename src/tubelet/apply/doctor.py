"""What is installed, and what this machine can do: the first thing to look at when something does not work."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from tubelet.data.torchcodec import problem
from tubelet.data.workers import cores
from tubelet.train.parallel import has_bfloat16

CORE = ("numpy", "av", "jsonargparse", "safetensors", "rich", "jinja2")
EXTRAS = {"table": "pyarrow", "synth": "scikit-image", "viz": "matplotlib", "track": "tensorboard",
          "flow": "opencv-python-headless"}  # fmt: skip


def findings() -> Iterator[tuple[str, str]]:
    """Name and value of all that matters, one after the other."""
    yield "tubelet", _version("tubelet") or "not installed, used from its source"
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", f"{torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU build'})"
    for name in CORE:
        yield name, _version(name) or "MISSING: pip install tubelet"
    for extra, name in EXTRAS.items():
        yield name, _version(name) or f"not installed: pip install 'tubelet[{extra}]' where you need it"
    yield "torchcodec", problem() or f"{_version('torchcodec')}, can be used (data.reader)"
    for name in ("torchvision", "torchaudio"):
        if _version(name):
            yield name, _importable(name)
    bfloat16 = "in hardware" if has_bfloat16(torch.device("cpu")) else "not in hardware"
    yield "CPU cores", f"{cores()}, torch uses {torch.get_num_threads()}; bfloat16 {bfloat16}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            bfloat16 = "bfloat16" if card.major >= 8 else "no bfloat16"
            yield f"GPU {index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {bfloat16}"
    else:
        yield "GPU", "none that torch can use" + ("" if torch.version.cuda else " (this torch is a CPU build)")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _importable(name: str) -> str:
    """Tubelet needs neither; a wrong build of one breaks other packages' imports in ways that are hard to read."""
    try:
        importlib.import_module(name)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{_version(name)}, installed but not importable ({reason}): pip uninstall {name}"
    return f"{_version(name)} (not used by Tubelet)"
