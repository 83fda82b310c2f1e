from pathlib import Path

import pytest

from report.fake_run import EVIL, make_film, save_run
from tubelet.data.listing import Manifest, Video


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Six films of two classes from three sources, one of them without a label; beside them a file that is none."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(6):
        make_film(folder / f"{number}.mp4", number)
    (folder / "broken.mp4").write_bytes(b"")
    rows = [Video(folder / f"{n}.mp4", label=(EVIL, "up_and_down")[n % 2], group=str(n // 2)) for n in range(5)]
    return Manifest([*rows, Video(folder / "5.mp4"), Video(folder / "broken.mp4", label=EVIL)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of VideoMAE, nothing but its weights."""
    folder = tmp_path / "name & run"
    folder.mkdir()
    save_run(folder, "videomae", ratio=0.5, decoder_depth=1)
    return folder
