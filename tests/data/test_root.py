"""A manifest of somebody else's cannot lead out of the root that it is read with, and nothing else is kept from it."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tiny_run import make_clips, make_recipe, train
from tubelet import cli
from tubelet.data.clips import Clips
from tubelet.data.info import UnreadableVideo
from tubelet.data.inspect import videos_of
from tubelet.data.listing import Manifest, Video, read_manifest, write_manifest
from tubelet.data.pack import Packing, pack
from tubelet.data.root import root_of, way_out
from tubelet.data.storage import Url
from tubelet.types import TubeletError
from videos import make_video


@pytest.fixture
def root(tmp_path) -> Path:
    """A root with a video in it, beside a folder with one that is none of a manifest's business."""
    make_video(tmp_path / "root" / "in.mp4", 8)
    make_video(tmp_path / "secret" / "s.mp4", 8)
    return tmp_path / "root"


def listed(root: Path, path: str) -> Path:
    manifest = root / "clips.csv"
    manifest.write_text(f'path,label\nin.mp4,a\n"{path}",b\n')
    return manifest


def refused(root: Path, path: str) -> str:
    with pytest.raises(TubeletError) as caught:
        read_manifest(listed(root, path), root=root)
    assert len(read_manifest(listed(root, path))) == 2, "without a root it may lie anywhere"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "path", ["../secret/s.mp4", "sub/../../secret/s.mp4", "{secret}/s.mp4", "file://{secret}/s.mp4"]
)
def test_a_path_that_leads_out_is_refused_with_row_path_and_root(root, path):
    """Fails without `way_out` in `listing._located`."""
    path = path.format(secret=root.parent / "secret")
    message = refused(root, path)
    assert f"clips.csv, line 3: {path!r} is outside of the root {root}" in message
    assert str(root.parent / "secret" / "s.mp4") in message


def test_links_that_lead_out_are_refused_and_those_within_are_not(root):
    """Fails where paths are compared as they are written, without resolving links."""
    (root / "file.mp4").symlink_to(root.parent / "secret" / "s.mp4")
    (root / "folder").symlink_to(root.parent / "secret")
    (root / "chain.mp4").symlink_to("file.mp4")
    for path in ("file.mp4", "folder/s.mp4", "chain.mp4"):
        assert f"it leads to {root.parent / 'secret' / 's.mp4'}" in refused(root, path)
    (root / "again.mp4").symlink_to("in.mp4")
    assert read_manifest(listed(root, "again.mp4"), root=root)[1].path == root / "again.mp4", "links keep their names"


def test_a_folder_whose_name_begins_like_the_root_is_outside(root):
    make_video(root.parent / "root-2" / "a.mp4", 8)
    assert "is outside of the root" in refused(root, "../root-2/a.mp4")


def test_a_link_among_the_pictures_of_a_folder_is_refused(root):
    (root / "film").mkdir()
    for number in range(3):
        (root / "film" / f"{number}.jpg").write_bytes(b"")
    assert len(read_manifest(listed(root, "film"), root=root)) == 2
    (root / "film" / "1.jpg").unlink()
    (root / "film" / "1.jpg").symlink_to("/etc/hostname")
    assert "leads to /etc/hostname" in refused(root, "film")


def test_the_index_beside_a_shard_is_a_file_of_it(root):
    with tarfile.open(root / "shard.tar", "w") as archive:
        archive.add(root / "in.mp4", "k.mp4")
    assert len(read_manifest(listed(root, "shard.tar/k"), root=root)) == 2
    (root / "shard.index").symlink_to(root.parent / "secret" / "s.mp4")
    assert "leads to" in refused(root, "shard.tar/k")
    assert "leads to" in refused(root, "shard.tar")


def test_lists_and_parquet_are_held_to_it_too(root):
    (root / "list.txt").write_text("in.mp4 0\n../secret/s.mp4 1\n")
    with pytest.raises(TubeletError, match=r"list.txt, line 2: '../secret/s.mp4' is outside of the root"):
        read_manifest(root / "list.txt", root=root)
    pytest.importorskip("pyarrow")
    write_manifest(root / "m.parquet", Manifest([Video(root / "in.mp4"), Video(root.parent / "secret" / "s.mp4")]))
    with pytest.raises(TubeletError, match=r"m.parquet, row 2: .* is outside of the root"):
        read_manifest(root / "m.parquet", root=root)


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("s3://bucket/films/a.mp4", True),
        ("s3://bucket/films/deep/./a.mp4", True),
        ("s3://bucket/films", False),
        ("s3://bucket/films-2/a.mp4", False),
        ("s3://bucket/films/../a.mp4", False),
        ("s3://bucket/films/%2e%2e/a.mp4", False),
        ("s3://other/films/a.mp4", False),
        ("gs://bucket/films/a.mp4", False),
        ("s3://bucket/films/x::file:///etc/passwd", False),
        ("local:///etc/passwd", False),
    ],
)
def test_a_url_must_go_on_from_a_root_that_is_one(url, inside):
    """The chain with ``::`` would be a file of this machine for fsspec."""
    assert (way_out(Url(url), root_of("s3://bucket/films/")) is None) == inside


def test_a_place_of_another_kind_than_the_root_is_outside(root):
    assert way_out(Url("s3://bucket/a.mp4"), root) == "s3://bucket/a.mp4"
    assert way_out(root / "in.mp4", root_of("s3://bucket/films")) == root / "in.mp4"
    assert "is outside of the root" in refused(root, "s3://bucket/a.mp4")


def test_the_whole_machine_is_a_root(root):
    assert way_out(root / "in.mp4", root_of("/")) is None


def test_a_root_must_be_a_folder(root):
    for wrong in (root / "in.mp4", root / "gone"):
        with pytest.raises(TubeletError, match="is not a folder"):
            read_manifest(listed(root, "in.mp4"), root=wrong)


def test_the_root_may_be_a_link_and_be_written_from_here(root, monkeypatch):
    (root.parent / "link").symlink_to("root")
    monkeypatch.chdir(root.parent)
    for name in ("link", "root", "./root/"):
        assert len(read_manifest(listed(root, "in.mp4"), root=name)) == 2
    assert len(read_manifest(Path("link/clips.csv"), root="root")) == 2


def test_a_zero_byte_is_no_path(root):
    (root / "clips.csv").write_bytes(b"path\nin.mp4\nin\0.mp4\n")
    for bound in (None, root):
        with pytest.raises(TubeletError, match="line 3: the path holds a zero byte"):
            read_manifest(root / "clips.csv", root=bound)


def test_a_link_that_is_changed_after_the_manifest_was_read_is_noticed_when_it_is_opened(root, tmp_path):
    """Fails without `look_again` in `Clips.take` and `packing.make`."""
    (root / "a.mp4").symlink_to("in.mp4")
    manifest = read_manifest(listed(root, "a.mp4"), root=root)
    clips = Clips(manifest.where("train") if manifest.splits else manifest[0:], frames=4, stride=1, size=16)
    clips[1]
    (root / "a.mp4").unlink()
    (root / "a.mp4").symlink_to(root.parent / "secret" / "s.mp4")
    for some in (clips, clips.for_testing(), clips.for_testing(clips.manifest.take([0, 1]))):
        some[0]
        with pytest.raises(UnreadableVideo, match=r"leads out of the root .* by now"):
            some[1]
    packed = pack(manifest, tmp_path / "packed", Packing(), 0)
    assert packed.videos == 1
    assert "leads out of the root" in packed.left_out[0][1]


def test_a_tree_is_held_to_it(root):
    assert len(videos_of(root, root)[0]) == 1
    (root / "link.mp4").symlink_to(root.parent / "secret" / "s.mp4")
    with pytest.raises(TubeletError, match=r"link.mp4 is outside of the root .*, it leads to .*s.mp4"):
        videos_of(root, root)


def test_a_root_changes_neither_rows_nor_fingerprint(root):
    whole = read_manifest(listed(root, "in.mp4"))
    bound = read_manifest(listed(root, "in.mp4"), root=root)
    assert (bound.videos, bound.fingerprint, bound.root) == (whole.videos, whole.fingerprint, root)
    assert bound.take([1]).root == bound[:1].root == root
    assert replace(bound[0], label="z").path == bound[0].path


COMMANDS = {
    "train": "train {recipe} --out {run} --data.root {root}",
    "evaluate": "evaluate {run} --manifest {manifest} --root {root} --tasks knn",
    "embed": "embed {run} {manifest} -o {out}.csv --root {root}",
    "report": "report {run} --manifest {manifest} --root {root}",
    "data scan": "data scan {manifest} -o {out}.csv --root {root}",
    "data check": "data check {manifest} -o {out}.csv --root {root}",
    "data pack": "data pack {manifest} {out} --root {root}",
    "data join": "data join {manifest} {manifest} -o {out}.csv --root {root}",
    "ablate": "ablate mask {recipe} --out {out} --data.root {root} --dry-run",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_takes_a_manifest_takes_a_root(tmp_path, trained, command, capsys):
    run, manifest = trained
    recipe = make_recipe(tmp_path / "recipe.yaml", manifest)
    run = tmp_path / "run" if command == "train" else run
    words = COMMANDS[command].format(recipe=recipe, run=run, manifest=manifest, out=tmp_path / "out", root=tmp_path)
    assert cli.main(words.split()) == 1
    told = capsys.readouterr().err
    assert f"{manifest}, line 2: '0.mp4' is outside of the root {tmp_path}" in told


def test_a_run_with_a_root_trains_and_is_judged_with_it(tmp_path, capsys):
    manifest = make_clips(tmp_path / "clips")
    recipe = make_recipe(tmp_path / "recipe.yaml", manifest, data={"root": str(tmp_path / "clips")})
    run = train(recipe, tmp_path / "run")
    (tmp_path / "clips" / "8.mp4").rename(tmp_path / "8.mp4")
    (tmp_path / "clips" / "8.mp4").symlink_to(tmp_path / "8.mp4")
    assert cli.main(["evaluate", str(run), "--tasks", "knn"]) == 1
    assert f"it leads to {tmp_path / '8.mp4'}" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run), "--tasks", "knn", "--root", str(tmp_path)]) == 0
    assert cli.main(["train", str(recipe), "--out", str(run), "--data.root", str(tmp_path)]) == 0, "a root may change"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("trained")
    manifest = make_clips(folder / "clips")
    return train(make_recipe(folder / "recipe.yaml", manifest), folder / "run"), manifest
