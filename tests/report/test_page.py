import base64
import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy
import pytest

from report.fake_run import EVIL, fill
from tubelet.data.objects import write_picture
from tubelet.report import figures
from tubelet.report.page import gather, judgement, summarise, write_report
from tubelet.train.provenance import Provenance
from tubelet.types import TubeletError


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", " ".join(Page(page).text))


def test_whole_page_is_self_contained(run, films):
    fill(run, [EVIL, "up_and_down"])
    page = write_report(run, gather(run, films)).read_text()
    tags = Page(page).tags
    assert "http:" not in page
    assert "https:" not in page
    attributes = [pair for _, attributes in tags for pair in attributes.items()]
    addresses = [value for name, value in attributes if name.split(":")[-1] in ("src", "href")]
    assert len(addresses) > 20
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert all(address.startswith(("data:", "#")) for address in re.findall(r"url\(([^)]*)\)", page))
    assert not any(tag in ("link", "iframe", "object") for tag, _ in tags)
    assert sum(tag == "video" for tag, _ in tags) == 4
    assert [tag for tag, _ in tags].count("script") == 2  # the map's clips and the few lines that show them


def test_names_from_files_are_escaped(run, films):
    fill(run, [EVIL, "up_and_down"])
    (run / "recipe.yaml").write_text(f"learner: {EVIL}")
    page = write_report(run, gather(run, films)).read_text()
    assert EVIL not in page
    assert page.count("<script") == 2
    clips = json.loads(re.search(r'id="clips">(.*?)</script>', page, re.DOTALL)[1])
    assert clips["names"][0] == ["0.mp4", EVIL]
    assert EVIL in unescape(page)


@pytest.mark.parametrize("number", [2, 60])
def test_numbers_are_there(run, number):
    fill(run, [f"class {n}" for n in range(number)])
    text = text_of(write_report(run).read_text())
    for words in (
        "71.3", "45.7", "86.1", "84.2", "67.3 – 75.3", "85.1 – 87.1 (2)", "91.3" if number > 5 else "–",
        "1 h 2 min 5 s", "6,400", "484,128", "90.0 (median)", "tubelet train tiny.yaml --out 'runs/a & b'",
        "the file is empty", "name: videomae # <b>", "name & run", f"{100 / number:.1f}",
    ):  # fmt: skip
        assert words in text, words
    assert "After 100 steps videomae gets 86.1 % of the test videos right (finetune), against 84.2 %" in text
    assert "better (intervals apart) in linear; not clearly different (seeds overlap) in finetune" in text
    assert f"class {number - 1} (10 of 10)" in text


def test_the_page_names_weights_code_and_starts(run):
    fill(run, ["a", "b"])
    (run / "provenance.json").unlink()
    with pytest.raises(KeyboardInterrupt), Provenance(run, "seed: 0", 4, seed=0) as start:
        start.reached(0, 0.0, 1.0)
        start.reached(12000, 7200.0, 0.5)
        raise KeyboardInterrupt
    with Provenance(run, "seed: 0", 4, seed=0) as start:
        start.reached(12000, 7200.0, 0.5)
        start.reached(13000, 8000.0, 0.5)
    results = json.loads((run / "evaluation" / "results.json").read_text())
    results["linear"]["videomae"] |= {"weights_hash": "c0ffee", "step": 13000}
    (run / "evaluation" / "results.json").write_text(json.dumps(results))
    text = text_of(write_report(run).read_text())
    code = start.start["code"]
    for words in (
        "by hash: videomae of step 13,000 c0ffee (linear).", "2 starts of the training", "0 – 12,000", "interrupted",
        "12,000 – 13,000", "finished", "2 h 13 min 20 s", "core-hours", "ffmpeg", f"Tubelet {code['version']}",
        start.start["hosts"][0]["host"], code.get("commit", "")[:7], f"recipe {start.told['recipe']}",
    ):  # fmt: skip
        assert words in text, words


def test_a_bare_folder_says_what_is_missing(tmp_path):
    page = write_report(tmp_path).read_text()
    for command in ("evaluate", "train", "report"):
        assert f"<code>tubelet {command} " in page
    assert page.count('class="missing"') == 10
    assert "None" not in page
    assert "nan" not in text_of(page)


def test_each_part_may_be_missing(run):
    fill(run, ["a", "b"])
    parts = ("recipe.yaml", "provenance.json", "metrics.jsonl", "unreadable.csv", "evaluation/results.json")
    for name in (*parts, "backbone.json"):
        (run / name).unlink()
        assert "</html>" in write_report(run).read_text()


def test_without_matplotlib_the_page_still_has_its_numbers(run, films, monkeypatch):
    fill(run, ["a", "b"])

    def refuse(*_, **__):
        raise TubeletError("figures need Matplotlib: pip install 'tubelet[viz]'")

    monkeypatch.setattr(figures, "style", refuse)
    page = write_report(run, gather(run, films, films=0)).read_text()
    assert "figures need Matplotlib" in page
    assert "71.3" in text_of(page)


def test_mistakes_have_one_line(tmp_path):
    with pytest.raises(TubeletError, match="give the folder of a run"):
        write_report(tmp_path / "none")
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(TubeletError, match="is damaged"):
        write_report(tmp_path)


def test_summary_is_honest_about_a_loss():
    ours, theirs = {"top1": 0.2, "interval": [0.1, 0.3]}, {"top1": 0.5, "interval": [0.4, 0.6]}
    results = {"knn": {"videomae": ours, "untrained": theirs}}
    text = summarise(results, {"learner": {"name": "videomae"}}, {}, 0.1)
    assert text == (
        "videomae gets 20.0 % of the test videos right (knn), against 50.0 % for untrained and 10.0 % by chance. "
        "Compared with the best baseline it is worse (intervals apart) in knn."
    )
    assert summarise({}, {}, {}, None) == "This encoder has not been judged yet."


def test_health_is_shown_with_what_was_wrong_and_since_when(run):
    looks = [(5.3, 0.17), (1.5, 0.04), (1.04, 0.002), (1.03, 0.002), (1.03, 0.002)]
    lines = [
        {"step": 50 * n, "health/effective_rank": rank, "health/spread": spread, "health/dead": 0.1, "health/loss": 0.9}
        for n, (rank, spread) in enumerate(looks)
    ]
    file = run / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    page = write_report(run).read_text()
    assert "no sign that it collapsed" in page and 'class="trouble' not in page
    for name in ("Effective rank", "Spread", "Loss on fixed clips"):
        assert f'aria-label="{name}"' in page
    assert 'aria-label="Update"' not in page  # not measured: no empty figure
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(run).read_text()
    assert "<b>From step 150:</b> the encoder has collapsed" in page and "no sign that" not in page
    back = [{**lines[0], "step": 300}, {**lines[0], "step": 350}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines + back))
    assert "<b>From step 150, later no more:</b> the encoder has collapsed" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("about", "folder"), [({"seed": 0}, "t-x"), ({"seeds": [{"seed": 3}, {"seed": 4}]}, "t-x-seed3")]
)
def test_pictures_are_those_of_the_judgement_that_is_shown(tmp_path, about, folder):
    """Fails where another judgement's, with other seeds, is found beside it."""
    for name in ("t-x", "t-x-seed0", "t-x-seed3"):
        (tmp_path / "evaluation" / name).mkdir(parents=True)
        (tmp_path / "evaluation" / name / "strip.png").write_text(name)
    result = {"numbers": ["j"], "j": 0.7, "interval": [0.5, 0.75], "videos": 3, "pictures": ["strip.png"], **about}
    assert judgement(tmp_path, "t", {"x": result}, "x").pictures == [("x", folder.encode())]


def test_a_task_that_is_not_about_classes_has_its_own_numbers_and_pictures(run):
    fill(run, ["left", "right"])
    kept = json.loads((run / "evaluation" / "results.json").read_text())
    before = text_of(write_report(run).read_text())
    numbers = {"numbers": ["j_and_f", "j"], "j": 0.7, "interval": [0.5, 0.75], "videos": 3, "pictures": ["strip.png"]}
    kept["propagation"] = {
        "untrained": {**numbers, "j_and_f": 0.314, "weights_hash": "abc"}, "videomae": {**numbers, "j_and_f": 0.625}
    }  # fmt: skip
    (run / "evaluation" / "results.json").write_text(json.dumps(kept))
    strip = run / "evaluation" / "propagation-videomae" / "strip.png"
    write_picture(strip, numpy.zeros((4, 4, 3), numpy.uint8))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 50, "time": 0.0, "propagation/j_and_f": 0.4, "propagation/j": 0.5}\n')
    page = write_report(run).read_text()
    text = text_of(page)
    assert "Propagation: J&F is 62.5 % for videomae, 31.4 % for untrained." in text
    assert "videomae 62.5 70.0 50.0 – 75.0 3" in text and "untrained 31.4" in text and "untrained abc" in text
    assert base64.b64encode(strip.read_bytes()).decode() in page and "J&amp;F of propagation (%)" in page
    assert "J of propagation" not in page and "J&F" not in before
