"""Each format on small annotation files in the form of the official ones."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tubelet import registry
from tubelet.cli import main
from tubelet.data.division import divide
from tubelet.data.listing import read_manifest
from tubelet.data.official import Official, gather
from tubelet.types import TubeletError


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def build(name: str, folder: Path, **options) -> Official:
    return registry.build("data/formats", name, annotations=str(folder), **options)


UCF101 = {
    "classInd.txt": "1 Punch\r\n2 BenchPress\r\n3 Diving \r\n",
    "trainlist01.txt": "Punch/v_Punch_g08_c01.avi 1\nBenchPress/v_BenchPress_g08_c02.avi 2\n",
    "testlist01.txt": "Punch/v_Punch_g01_c01.avi\nDiving/v_Diving_g01_c01.avi\n",
    "trainlist02.txt": "Punch/v_Punch_g01_c01.avi 1\n",
    "testlist02.txt": "Punch/v_Punch_g08_c01.avi\n",
}
HMDB51 = {
    "wave_test_split1.txt": "TrumanShow_wave_f_nm_np1_fr_med_26.avi 1 \nRATRACE_wave_f_nm_np1_fr_goo_37.avi 2 \n",
    "wave_test_split2.txt": "TrumanShow_wave_f_nm_np1_fr_med_26.avi 2 \n",
    "chew_test_split1.txt": "#2_Gum_chew_h_nm_np1_fr_med_0.avi 1 \n#2_Gum_chew_h_nm_np1_fr_med_1.avi 0 \nodd.avi 2\n",
}
SSV2 = {
    "labels/labels.json": json.dumps({"Holding something": "1", "Opening something": "0", "Closing something": "2"}),
    "labels/train.json": json.dumps([
        {"id": "7", "label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]},
    ]),
    "labels/validation.json": json.dumps([{"id": "8", "label": "closing it", "template": "Closing [something]"}]),
    "labels/test.json": json.dumps([{"id": "9"}]),
}  # fmt: skip
SSV1 = {
    "something-something-v1-labels.csv": "Holding something\nClosing something\n",
    "something-something-v1-train.csv": "100218;Closing something\n",
    "something-something-v1-validation.csv": "3;Holding something\n",
    "something-something-v1-test.csv": "4\n",
}
DIVING48 = {
    "Diving48_vocab.json": json.dumps([["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"]]),
    "Diving48_V2_train.json": json.dumps([{"vid_name": "_8Vy3dlHg2w_00000", "label": 1, "end_frame": 9}]),
    "Diving48_V2_test.json": json.dumps([{"vid_name": "_8Vy3dlHg2w_00001", "label": 0}]),
}
KINETICS = {
    "train.csv": "label,youtube_id,time_start,time_end,split\nzumba,-3B32lodo2M,59,69,train\n"
    '"passing American football (in game)",_dbcJuKJQNs,40,50,train\nair drumming,abcdefghij0,0,10,train\n',
    "validate.csv": "label,youtube_id,time_start,time_end,split\nzumba,abcdefghij1,5,15,validate\n",
    "test.csv": "youtube_id,time_start,time_end,split\nabcdefghij2,5,15,test\n",
}
K710 = {
    "label_map_k710.txt": "riding a bike\nmarching\ndodgeball\n",
    "train.csv": "k400/---QUuC4vJs.mp4 2\nk700/my clips/-0H3T2B9PH4_000025_000035.mp4 0\n",
    "val.csv": "k400/abcdefghij1.mp4 1\n",
}
ALL = {
    "ucf101": UCF101, "hmdb51": HMDB51, "ssv2": SSV2, "ssv1": SSV1, "diving48": DIVING48, "kinetics": KINETICS,
}  # fmt: skip


def rows(official: Official) -> list[tuple]:
    return [(v.names[0], v.label, v.split, v.group) for v in official.videos]


def test_ucf101(tmp_path):
    official = build("ucf101", write(tmp_path, UCF101))
    assert official.classes == ["Punch", "BenchPress", "Diving"]  # by number, which is not how they sort
    assert rows(official) == [
        ("Punch/v_Punch_g08_c01.avi", "Punch", "train", "Punch_g08"),
        ("BenchPress/v_BenchPress_g08_c02.avi", "BenchPress", "train", "BenchPress_g08"),
        ("Punch/v_Punch_g01_c01.avi", "Punch", "test", "Punch_g01"),
        ("Diving/v_Diving_g01_c01.avi", "Diving", "test", "Diving_g01"),
    ]
    assert official.published == {"published": {"train": 9_537, "test": 3_783}}
    second = build("ucf101", tmp_path, split_number=2)
    assert rows(second)[0] == ("Punch/v_Punch_g01_c01.avi", "Punch", "train", "Punch_g01")
    assert sum(second.published["published"].values()) == 13_320


def test_ucf101_of_some_classes_keeps_their_numbers(tmp_path):
    write(tmp_path, UCF101 | {"classInd.txt": "3 Punch\n4 BenchPress\n6 Diving\n", "testlist01.txt": "Punch/a b.avi\n",
                              "trainlist01.txt": "Punch/v_Punch_g08_c01.avi 3\n"})  # fmt: skip
    official = build("ucf101", tmp_path)
    assert [official.classes.index(name) for name in ("Punch", "BenchPress", "Diving")] == [2, 3, 5]
    assert rows(official)[1] == ("Punch/a b.avi", "Punch", "test", None)


def test_hmdb51(tmp_path):
    official = build("hmdb51", write(tmp_path / "testTrainMulti_7030_splits", HMDB51).parent)
    assert official.classes == ["chew", "wave"]
    assert rows(official) == [
        ("chew/#2_Gum_chew_h_nm_np1_fr_med_0.avi", "chew", "train", "#2_Gum"),
        ("chew/#2_Gum_chew_h_nm_np1_fr_med_1.avi", "chew", None, "#2_Gum"),
        ("chew/odd.avi", "chew", "test", None),
        ("wave/TrumanShow_wave_f_nm_np1_fr_med_26.avi", "wave", "train", "TrumanShow"),
        ("wave/RATRACE_wave_f_nm_np1_fr_goo_37.avi", "wave", "test", "RATRACE"),
    ]
    assert official.videos[0].extra == {"visible": "h", "camera": "nm", "people": "1", "view": "fr", "quality": "med"}
    assert sum(official.published["published"].values()) == 6_766
    assert [v.split for v in build("hmdb51", tmp_path, split_number=2).videos] == ["test"]


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_ssv2(tmp_path, prefix):
    official = build("ssv2", write(tmp_path, {f"{prefix}{Path(n).name}": text for n, text in SSV2.items()}))
    assert official.classes == ["Opening something", "Holding something", "Closing something"]
    assert rows(official) == [
        ("7.webm", "Holding something", "train", None),
        ("8.webm", "Closing something", "val", None),
        ("9.webm", None, "test", None),
    ]
    assert official.videos[0].extra == {"sentence": "holding a cup", "something": "a cup"}
    assert sum(official.published["published"].values()) == 220_847


def test_ssv1(tmp_path):
    official = build("ssv1", write(tmp_path, SSV1))
    assert official.classes == ["Holding something", "Closing something"]
    assert build("ssv1", tmp_path, order="alphabet").classes == ["Closing something", "Holding something"]
    assert rows(official) == [
        ("100218.mp4", "Closing something", "train", None),
        ("3.mp4", "Holding something", "val", None),
        ("4.mp4", None, "test", None),
    ]
    assert sum(official.published["published"].values()) == 108_499


def test_diving48(tmp_path):
    official = build("diving48", write(tmp_path, DIVING48))
    assert rows(official) == [
        ("_8Vy3dlHg2w_00000.mp4", "Back 15som 15Twis FREE", "train", "_8Vy3dlHg2w"),
        ("_8Vy3dlHg2w_00001.mp4", "Back 15som 05Twis FREE", "test", "_8Vy3dlHg2w"),
    ]
    assert official.published["published"] == {"train": 15_027, "test": 1_970}


def test_kinetics_csv(tmp_path):
    official = build("kinetics", write(tmp_path, KINETICS))
    assert official.classes == ["air drumming", "passing American football (in game)", "zumba"]
    assert sorted(rows(official))[:2] == [
        ("abcdefghij2_000005_000015.mp4", None, "test", "abcdefghij2"),
        ("air drumming/abcdefghij0_000000_000010.mp4", "air drumming", "train", "abcdefghij0"),
    ]
    assert {v.split for v in official.videos} == {"train", "val", "test"}
    write(tmp_path, {"label_map_k400.txt": "zumba\nof another list\n"})
    assert build("kinetics", tmp_path).classes == official.classes  # a label map is for lists of numbers
    assert all(v.start_s is None for v in official.videos)
    zumba = next(v for v in build("kinetics", tmp_path, trimmed=False).videos if v.group == "-3B32lodo2M")
    assert (zumba.start_s, zumba.end_s, zumba.extra["time_start"]) == (59, 69, "59")
    assert build("kinetics", tmp_path, edition="600").published["VideoMAE V2"] == {"train": 366_006, "val": 27_935}


@pytest.mark.parametrize(
    "file",
    [
        "zumba/-3B32lodo2M_000059_000069.mp4", "-3B32lodo2M_000059_000069.mkv",
        "train/zumba/-3B32lodo2M.mp4", "-3B32lodo2M.mp4",
    ],
)
def test_kinetics_file_names(tmp_path, file):
    official = build("kinetics", write(tmp_path / "lists", KINETICS))
    root = write(tmp_path / "videos", {file: ""})
    assert [v.path for v in gather(official, root).manifest] == [root / file]


def test_kinetics_folder_with_underscores_tells_two_clips_of_one_film_apart(tmp_path):
    text = "label,youtube_id,time_start,time_end\nair drumming,abcdefghij0,0,10\nzumba,abcdefghij0,20,30\n"
    official = build("kinetics", write(tmp_path / "lists", {"train.csv": text}))
    root = write(tmp_path / "videos", {"air_drumming/abcdefghij0.mp4": ""})
    assert [v.label for v in gather(official, root).manifest] == ["air drumming"]


def test_kinetics_710_lists(tmp_path):
    official = build("kinetics", write(tmp_path, K710), edition="710")
    assert rows(official) == [
        ("k400/---QUuC4vJs.mp4", "dodgeball", "train", "---QUuC4vJs"),
        ("k700/my clips/-0H3T2B9PH4_000025_000035.mp4", "riding a bike", "train", "-0H3T2B9PH4"),
        ("k400/abcdefghij1.mp4", "marching", "val", "abcdefghij1"),
    ]
    assert official.classes == ["riding a bike", "marching", "dodgeball"]


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("ucf101", {"classInd.txt": "Punch\n"}, "classInd.txt, line 1: expected `number class`"),
        ("ucf101", {"classInd.txt": "0 Punch\n"}, "classInd.txt, line 1: expected `number class`"),
        ("ucf101", {"testlist01.txt": "v_Punch_g01_c01.avi\n"}, "testlist01.txt, line 1: expected `class/video.avi"),
        ("ucf101", {"testlist01.txt": "\nJump/v_Jump_g01_c01.avi\n"}, "line 2: classInd.txt has no class 'Jump'"),
        ("ucf101", {"trainlist01.txt": "Punch/v_Punch_g08_c01.avi 2\n"}, "class 2, but Punch is 1 in classInd.txt"),
        ("ucf101", {"testlist01.txt": None}, "has no testlist01.txt: --annotations is the folder of"),
        ("hmdb51", {"wave_test_split1.txt": "a.avi 3\n"}, "line 1: expected `video.avi 0`, 1 or 2, got 'a.avi 3'"),
        ("hmdb51", {"wave_test_split1.txt": "a.avi\n"}, "line 1: expected `video.avi 0`, 1 or 2, got 'a.avi'"),
        ("ssv2", {"labels/train.json": '[{"id": "7"'}, "damaged JSON"),
        ("ssv2", {"labels/train.json": '[{"id": "7"}]'}, "train.json, entry 1 has no 'template'"),
        ("ssv2", {"labels/train.json": '["7"]'}, "train.json, entry 1 has no 'template'"),
        ("ssv2", {"labels/train.json": '[{"id": "7", "template": "Eating [it]"}]'}, "labels.json has no 'Eating it'"),
        ("ssv2", {"labels/labels.json": '{"a": "0", "b": "0"}'}, "must give each template a number of its own"),
        ("ssv2", {"labels/test.json": None}, "or test.json: --annotations is the folder of"),
        ("ssv1", {"something-something-v1-train.csv": "12\n"}, "line 1: expected `id;label`, got '12'"),
        ("ssv1", {"something-something-v1-train.csv": "12;Eating\n"}, "labels.csv has no 'Eating'"),
        ("diving48", {"Diving48_V2_test.json": '[{"vid_name": "a", "label": 2}]'}, "'2' is no number below the 2"),
        ("diving48", {"Diving48_V2_test.json": "{}"}, "must hold a list"),
        ("kinetics", {"train.csv": "label,youtube_id,time_start,time_end\nzumba,a,soon,9\n"}, "'a' has no numbers"),
        ("kinetics", {"train.csv": "label,youtube_id,time_start,time_end\nzumba,a,nan,inf\n"}, "'a' has no numbers"),
        ("kinetics", {"train.csv": "a.mp4 0\n", "label_map_k400.txt": "eating\n"}, "classes that label_map_k400"),
        ("kinetics", {"train.csv": "a.mp4 0\n"}, "put the label map that names them at .*label_map_k400.txt"),
        ("kinetics", {"kinetics_train.csv": KINETICS["train.csv"]}, "both list train: keep one of them"),
        ("kinetics", {"train.csv": None, "validate.csv": None, "test.csv": None}, "has no \\*.csv or \\*.txt"),
        ("kinetics", {f"{n}.csv": None for n in ("train", "validate", "test")} | {"a.csv": "x"}, "no list with train"),
    ],
)  # fmt: skip
def test_damaged_annotations_get_one_clear_line(tmp_path, name, changed, message):
    write(tmp_path, {file: text for file, text in (ALL[name] | changed).items() if text is not None})
    with pytest.raises(TubeletError, match=message) as caught:
        build(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_k710_numbers_outside_the_label_map(tmp_path):
    write(tmp_path, K710 | {"val.csv": "k400/a.mp4 3\n"})
    with pytest.raises(TubeletError, match=r"'3' of a\.mp4 is not a number below 3"):
        build("kinetics", tmp_path, edition="710")


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_command_writes_a_manifest_with_the_official_classes(tmp_path, name, capsys):
    lists = write(tmp_path / "my lists", ALL[name])
    official = build(name, lists)
    root = write(tmp_path / "my videos", {v.names[0]: "" for v in official.videos[1:]})
    out = tmp_path / "out/clips.csv"
    line = ["data", "import", name, "--annotations", str(lists), "--videos", str(root), "-o", str(out)]
    assert main(line) == 0
    manifest = read_manifest(out)
    named = {v.label for v in manifest if v.label}
    assert [manifest.classes.index(n) for n in named] == [official.classes.index(n) for n in named]
    assert [v.path for v in manifest] == [root / v.names[0] for v in official.videos[1:]]
    printed = capsys.readouterr()
    assert official.checksum() in printed.out and next(iter(official.published)) in printed.out
    with out.with_name("clips-missing.csv").open() as file:
        ((path, reason),) = list(csv.reader(file))[1:]
    assert path == str(root / official.videos[0].names[0]) and reason.startswith("no such file")
    write(root, {official.videos[0].names[0]: ""})
    assert main(line) == 0
    assert not out.with_name("clips-missing.csv").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["ucf11"], 1, "did you mean 'ucf101'?"),
        (["ucf101", "--split-number", "4"], 2, "--split-number cannot be '4': expected one of 1, 2, 3"),
        (["ssv2", "--split-number", "1"], 2, "ssv2 has no option --split-number"),
        (["ucf101", "--splits", "val"], 1, "no split 'val'; there are: test, train"),
        (["ssv2"], 1, "--annotations is the folder of the official JSON of Something-Something V2"),
        (["ucf101"], 1, "none of the 4 listed videos is below"),
    ],
)
def test_wrong_command_lines_get_one_line(tmp_path, capsys, words, code, message):
    lists, root = write(tmp_path / "lists", UCF101), write(tmp_path / "videos", {"a.mp4": ""})
    assert main(["data", "import", *words, "--annotations", str(lists), "--videos", str(root)]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_options_of_every_format_are_in_the_help_without_torch():
    code = "import sys, tubelet.cli as c; c.main(['data', 'import', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for name, place in registry.catalogue("data/formats").items():
        assert name in done.stdout
        for option in registry.schema(*place).__annotations__:
            assert f"--{option.replace('_', '-')}" in done.stdout


def test_real_ucf101_clips_and_their_groups(real_clips, tmp_path):
    """Twenty clips of UCF101: each is found, and no division of them ever divides a group."""
    root = real_clips / "fixtures" / "ucf101"
    clips = sorted(root.glob("*/*.avi"))
    classes = ["ApplyEyeMakeup", "BenchPress", "Biking", "Diving", "Punch"]
    train = [f"{p.parent.name}/{p.name} {1 + classes.index(p.parent.name)}" for p in clips if p.parent.name != "Punch"]
    write(tmp_path, {
        "classInd.txt": "\n".join(f"{i} {name}" for i, name in enumerate(classes, start=1)),
        "trainlist01.txt": "\n".join(train),
        "testlist01.txt": "\n".join(f"Punch/{p.name}" for p in clips if p.parent.name == "Punch"),
    })  # fmt: skip
    result = gather(build("ucf101", tmp_path), root)
    assert sorted(v.path for v in result.manifest) == [p.resolve() for p in clips]
    assert not result.missing and not result.unlisted
    sides = defaultdict(set)
    for seed in range(5):
        for side, part in enumerate(divide(result.manifest, 0.3, seed)):
            for group in part.groups:
                sides[seed, group].add(side)
    assert len({group for _, group in sides}) == 5
    assert all(len(found) == 1 for found in sides.values())
