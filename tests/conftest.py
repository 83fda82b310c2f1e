"""What every test shares: one thread (the suite may run beside other work), and where real clips are, if anywhere."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

REAL_CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real clips beside the project; tests that need it are skipped where it is absent."""
    if not REAL_CLIPS.is_dir():
        pytest.skip("no ../shared/data beside the project")
    return REAL_CLIPS


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """The manifest of a tiny corpus of moving ramps: 12 videos to train on, 4 to test, two classes."""
    from moving import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus"))
