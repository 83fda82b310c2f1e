"""Fails when a package slipped in that breaks the CPU build of PyTorch, or pulls gigabytes of CUDA.

A CPU build of torch cannot import torchvision and torchaudio as they are published, and with them installed other
packages fail at import. On a machine with a CUDA build of torch nothing is wrong with CUDA packages.
"""

import sys
from importlib.metadata import distributions, version

FORBIDDEN = ("torchvision", "torchaudio")
CUDA = ("nvidia-", "cuda-", "triton")


def main() -> int:
    names = {(d.metadata["Name"] or "").lower() for d in distributions()}
    bad = sorted(name for name in names if name in FORBIDDEN)
    if "+cpu" in version("torch"):
        bad += sorted(name for name in names if name.startswith(CUDA))
    if bad:
        print(f"these packages must not be installed: {', '.join(bad)}; see constraints.txt", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
