"""Checkpoints that rot, disks that are full and folders that cannot be written."""

from pathlib import Path

import pytest

from lives import (
    Run,
    ask_to_stop,
    assert_same,
    fill_disk,
    finish,
    live,
    make_read_only,
    make_room,
    make_writable,
    once_saved,
    saved,
)

OPTIONS = {"length": "12 steps", "save": "every 4 steps"}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    """As some file systems leave what was not flushed when the power failed."""
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Run:
    return finish(Run("momentum contrast", corpus, tmp_path_factory.mktemp("whole"), OPTIONS), world=2)


@pytest.fixture
def stopped(whole, tmp_path) -> Run:
    """The same run with checkpoints of the steps 4 and 7, by two processes."""
    run = whole._replace(out=tmp_path / "damaged")
    assert [end.exit_code for end in live(run._replace(befalls={7: ask_to_stop}), world=2)] == [0, 0]
    return run


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("shard-00001-model-00001-of-00001.safetensors", truncate),
        ("shard-00002-model-00001-of-00001.safetensors", flip),
        ("shard-00002-model-00001-of-00001.safetensors", Path.unlink),
        ("state.json", flip),
        ("state.json", empty),
        ("SHA256SUMS", truncate),
        ("SHA256SUMS", Path.unlink),
    ],
    ids=lambda value: value.split("-model")[0] if isinstance(value, str) else value.__name__,
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(file, damage, stopped, whole):
    """Fails without the checksums: what is flipped would be trained with, and what is cut would end the start."""
    newest = saved(stopped, 7).folder
    damage(newest / file)
    ends = live(stopped, world=2)
    assert [end.exit_code for end in ends] == [0, 0], ends
    assert f"{newest} is damaged" in " ".join(ends[0].output.split())
    assert f"going on from {newest.with_name('step-000000004')}" in ends[0].output
    assert min(ends[0].value[0]) == 4
    assert_same(whole, stopped)


def test_where_all_checkpoints_are_damaged_nothing_is_begun_anew(stopped):
    """Fails where a run whose checkpoints are all damaged is taken for one that has none."""
    for step in (4, 7):
        truncate(saved(stopped, step).folder / "state.json")
    ends = live(stopped, world=2)
    assert all(end.exit_code == 1 and "can be read" in end.error for end in ends)


@pytest.mark.parametrize(("fault", "cure"), [(fill_disk, make_room), (make_read_only, make_writable)])
def test_what_cannot_be_written_is_said_and_training_goes_on_but_ends_as_a_failure(fault, cure, whole, tmp_path):
    """On the first process alone. Fails where an error ends the run or the thread that saves, or is forgotten."""
    run = whole._replace(out=tmp_path / "run", befalls={6: once_saved(4, fault)})
    ends = live(run, world=2)
    assert [end.exit_code for end in ends] == [1, 1], ends
    assert all("could not be saved" in end.error for end in ends)
    assert ends[0].output.count("error: the checkpoint of step 8 could not be written") == 1
    cure(run)
    assert saved(run, 4)
    assert_same(whole, finish(run._replace(befalls={}), world=2))


@pytest.mark.parametrize(("fault", "cure"), [(fill_disk, make_room)])
def test_a_disk_that_has_room_again_in_time_has_cost_nothing(fault, cure, whole, tmp_path):
    """Fails where a failed save is not forgotten when a later one is written."""
    run = whole._replace(out=tmp_path / "run", befalls={6: once_saved(4, fault), 9: cure})
    assert_same(whole, finish(run, world=2))
