import pytest

from tasks import colours
from tubelet.tasks.protocol import Protocol


@pytest.fixture(scope="session")
def colour_videos(tmp_path_factory):
    """24 training and 12 test videos; nothing writes into their folder."""
    return colours.make(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def broken_videos(tmp_path):
    """The same, with one training and one test video that cannot be read."""
    manifest = colours.make(tmp_path / "broken")
    for name in ("train green 1", "test red 0"):
        (tmp_path / "broken" / f"{name}.mp4").write_bytes(b"not a video")
    return manifest


@pytest.fixture
def protocol(colour_videos):
    return Protocol.from_manifest(colour_videos, colours.CLIP)
