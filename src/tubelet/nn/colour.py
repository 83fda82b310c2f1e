"""Colours in which lightness stands apart: sRGB to CIELAB (CIE 1976, white D65) and back."""

from __future__ import annotations

import torch
from torch import Tensor

TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
"""Linear sRGB to XYZ (IEC 61966-2-1)."""
WHITE = (0.95047, 1.0, 1.08883)
EDGE = 6 / 29
"""Below it the cube root is a line."""


def to_lab(colours: Tensor) -> Tensor:
    """RGB in [0, 1] to L in 0..100 and a, b about -128..127. Both ... 3 (channels last), float32."""
    matrix, white = colours.new_tensor(TO_XYZ, dtype=torch.float32), colours.new_tensor(WHITE, dtype=torch.float32)
    rgb = colours.float()
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    with torch.autocast(colours.device.type, enabled=False):
        xyz = linear @ matrix.T / white  # ... 3
    root = torch.where(xyz > EDGE**3, xyz.clamp(min=EDGE**3) ** (1 / 3), xyz / (3 * EDGE**2) + 4 / 29)
    x, y, z = root.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `to_lab`; colours that no screen shows are cut off to [0, 1]."""
    matrix, white = lab.new_tensor(TO_XYZ, dtype=torch.float32), lab.new_tensor(WHITE, dtype=torch.float32)
    lightness, a, b = lab.float().unbind(-1)
    y = (lightness + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], dim=-1)
    xyz = torch.where(root > EDGE, root**3, 3 * EDGE**2 * (root - 4 / 29)) * white
    with torch.autocast(lab.device.type, enabled=False):
        linear = (xyz @ matrix.inverse().T).clamp(min=0)  # ... 3
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055).clamp(
        0, 1
    )
