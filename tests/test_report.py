"""`race report`: a page that needs no other file."""

import json
import re
from html.parser import HTMLParser

import ase.io
import pytest

from race.cli import main

from .train.conftest import labelled, make_config


class Tags(HTMLParser):
    """What a browser would fetch, the tables' rows, and tags left open."""

    def __init__(self):
        super().__init__()
        self.sources, self.rows, self.open = [], 0, []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.rows += tag == "tr"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from race.train.training import train

    folder = tmp_path_factory.mktemp("report")
    ase.io.write(folder / "a.extxyz", [labelled(seed) for seed in range(12)])
    ase.io.write(folder / "b <b>.extxyz", [labelled(seed) for seed in range(12, 18)])
    config = make_config(folder / "a.extxyz", model={"n_members": 2})
    train(config, folder / "run")
    return folder / "run"


def test_a_run_and_its_evaluation(run, capsys):
    data = run.parent / "b <b>.extxyz"
    words = ["evaluate", str(run), f"<b>={data}", "--out", str(run.parent / "ev"), "--bootstrap=0"]
    assert main(words) == 0
    assert main(["report", str(run), "--evaluation", str(run.parent / "ev")]) == 0
    text = (run / "report.html").read_text()
    assert str(run / "report.html") in capsys.readouterr().out
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert len(tags.sources) >= 4 and all(s.startswith("data:image/png") for s in tags.sources)
    assert "<td>&lt;b&gt;</td>" in text  # names are text, not tags
    record = json.loads((run.parent / "ev" / "metrics.json").read_text())[0]
    assert f"<td>{record['mae_f']:.1f}</td>" in text and f"{record['coverage90_f']:.3f}" in text
    summary = json.loads((run / "summary.json").read_text())
    assert all(digest in text for digest in summary["training"]["files"].values())
    assert "n_radial_basis" in text


def test_a_run_alone(run, tmp_path):
    assert main(["report", str(run), "-o", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert len(re.findall("data:image/png", text)) == 1 and "member 1" in text
    assert main(["report", str(run), "-o", str(run / "model.safetensors")]) == 2
    assert main(["report", str(run), "-o", str(tmp_path / "page.html")]) == 0  # the model is there


def test_what_is_no_evaluation(run, tmp_path, capsys):
    assert main(["report", str(run), "--evaluation", str(tmp_path)]) == 2
    assert "as `race evaluate` makes" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
