"""Tubelet: self-supervised learning from video, from a folder of raw files to an encoder that is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tubelet.checkpoint import load_backbone

__all__ = ["__version__", "load_backbone"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_backbone` comes when it is asked for: `import tubelet` alone does not wait for torch."""
    if name == "load_backbone":
        from tubelet.checkpoint import load_backbone

        return load_backbone
    raise AttributeError(f"module 'tubelet' has no attribute {name!r}")
