from pathlib import Path

import pytest

from report.test_page import Page, text_of
from scenes import make_scene
from tubelet.data.check import Checked, check
from tubelet.report.check import histograms, steps, verdict, write_page

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> Checked:
    root = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        make_scene(root / f"{seed}.mp4", seed)
    (root / "copy.mp4").write_bytes((root / "0.mp4").read_bytes())
    (root / "words.mp4").write_text("not a video")
    rows = ["path,label,group,split"]
    rows += [f"0.mp4,{EVIL},g,train", "1.mp4,jump,g,test", "2.mp4,jump,g,val"]
    (root / "clips.csv").write_text("\n".join([*rows, "copy.mp4,run,,train", "words.mp4,run,,train"]))
    return check(root / "clips.csv", workers=0)


@pytest.fixture(scope="module")
def page(checked) -> str:
    return write_page(checked, [("time", "3 hours")], "tiny takes 3 hours.", ["tubelet", "data", "check"]).read_text()


def test_the_page_is_self_contained_and_runs_nothing(page):
    tags = Page(page).tags
    assert "http:" not in page and "https:" not in page and EVIL not in page
    assert not any(tag in ("script", "link", "iframe", "object") for tag, _ in tags)
    pictures = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(pictures) >= 4 and all(source.startswith("data:image/jpeg;base64,") for source in pictures)


def test_it_says_what_was_found(page, checked):
    text = text_of(page)
    for words in (
        "4 of 5 rows can be used (80.0 %)", "text (1)", "words.mp4", "The same bytes, 2 rows", "labelled", "jump",
        "tiny takes 3 hours.", "test 1, val 1, train 1", "tubelet data check", "frames a second",
        "clips-clean-check.json",
    ):  # fmt: skip
        assert words in text, words
    assert "None" not in text and "nan" not in text
    assert checked.out.page.name == "clips-clean-check.html"


def test_each_warning_has_a_step(checked):
    said = " ".join(steps(checked))
    for words in ("Text:", "Duplicate with two labels:", "Leak:", "--drop-leaks"):
        assert words in said


def test_histograms_count_every_usable_row(checked):
    for title, bars in histograms(checked):
        assert sum(count for _, count in bars) == 4, title
    found = dict(histograms(checked))
    assert found["Length (s)"] == [("2 – 3", 4)]
    assert found["Shorter side (pixels)"] == [("128 – 224", 4)]
    assert found["Split"] == [("train", 2), ("val", 1), ("test", 1)]


def test_a_sound_corpus_and_one_without_a_usable_file(tmp_path):
    for seed in range(5):
        make_scene(tmp_path / f"sound/{seed}.mp4", seed, frames=66, fps=30)
    found = check(tmp_path / "sound", tmp_path / "sound.csv", workers=0)
    assert verdict(found).endswith("Nothing was found that is worth a warning.") and steps(found) == []
    assert "No video is there twice" in text_of(write_page(found).read_text())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.mp4").write_bytes(b"")
    none = check(tmp_path / "bad", tmp_path / "bad.csv", workers=0)
    assert "None of the 1 rows can be used" in text_of(write_page(none).read_text())
    assert not Path(tmp_path / "bad.csv").exists()


def test_copies_in_two_splits_are_not_passed_over_where_no_group_leaks(tmp_path):
    for split in ("train", "test"):
        make_scene(tmp_path / split / "a.mp4", 0)
    (tmp_path / "test/a.mp4").write_bytes((tmp_path / "train/a.mp4").read_bytes())
    found = check(tmp_path, tmp_path / "clips.csv", workers=0)
    text = text_of(write_page(found, [], "", ["tubelet"]).read_text())
    assert "No group and no file is in two splits. Copies of one video are: they stand above." in " ".join(text.split())
