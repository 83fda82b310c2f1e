import csv
from pathlib import Path

import numpy
import pytest
import torch

import tubelet
from tiny_run import make_clips, make_recipe, train
from tubelet.apply.embed import embed
from tubelet.checkpoint import read_about, weights_hash
from tubelet.data.clips import Clips
from tubelet.data.listing import read_manifest
from tubelet.types import TubeletError


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return train(make_recipe(folder / "r.yaml", make_clips(folder)), folder / "run")


@pytest.fixture(scope="module")
def manifest(run) -> Path:
    """Four videos, of which the third is none."""
    folder = run.parent
    (folder / "bad, file.mp4").write_text("no video")
    path = folder / "some.csv"
    path.write_text('path,label,group\n0.mp4,a,g\n1.mp4,,g\n"bad, file.mp4",b,\n2.mp4,b,\n')
    return path


def test_vectors_are_the_mean_tokens_in_the_order_of_the_manifest(run, manifest, tmp_path):
    found = embed(run, manifest, tmp_path / "f.npz", batch=2)
    assert found.readable.tolist() == [True, True, False, True]
    assert [Path(path).name for path in found.unreadable] == ["bad, file.mp4"]
    clips = Clips(read_manifest(manifest), **read_about(run)["clip"]).for_testing()
    video = clips[3].clips[0][0].pixels.transpose(0, 1)[None].float() / 255  # 1 C T H W
    with torch.no_grad():
        expected = tubelet.load_backbone(run)(video).tokens.mean(dim=1)[0]
    assert numpy.allclose(found.values[3], expected, atol=2e-2)  # bfloat16 where the hardware has it
    kept = numpy.load(tmp_path / "f.npz")
    assert numpy.array_equal(kept["embedding"], found.values, equal_nan=True)
    assert kept["label"].tolist() == ["a", "", "b", "b"] and numpy.isnan(kept["embedding"][2]).all()


def test_csv_has_empty_cells_where_there_is_no_vector(run, manifest, tmp_path):
    found = embed(run, manifest, tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["readable"] for row in rows] == ["True", "True", "False", "True"]
    assert rows[2]["f0"] == "" and rows[2]["path"].endswith("bad, file.mp4")
    assert [float(rows[3][f"f{i}"]) for i in range(16)] == pytest.approx(found.values[3].tolist(), rel=1e-6)


def test_parquet_has_a_list_column(run, manifest, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = embed(run, manifest, tmp_path / "f.parquet", clips=2)
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["path", "label", "group", "split", "readable", "weights_hash", "embedding"]
    vectors = table["embedding"].to_pylist()
    assert vectors[2] is None and numpy.allclose(vectors[0], found.values[0])
    assert set(table["weights_hash"].to_pylist()) == {weights_hash(tubelet.load_backbone(run))}
    assert table["label"].to_pylist() == ["a", None, "b", "b"]


def test_nothing_is_written_when_nothing_can_be_read(run, tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "m.csv").write_text("path\na.mp4\n")
    with pytest.raises(TubeletError, match="none of the 1 videos can be read"):
        embed(run, tmp_path / "m.csv", tmp_path / "f.npz")
    assert not (tmp_path / "f.npz").exists()
    with pytest.raises(TubeletError, match=r"must end in one of .parquet, .csv, .npz"):
        embed(run, tmp_path / "m.csv", tmp_path / "f.txt")
