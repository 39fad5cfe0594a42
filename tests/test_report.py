"""`race report`: a page that needs no other file."""

import json
import re
import shutil
from html.parser import HTMLParser

import ase.io
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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
    for title in ("by chance", "best trivial", "AUROC of errors"):
        assert f"<th>{title}</th>" in text
    for key, form in (("ce_e_floor", ".4f"), ("auroc_error_f_trivial", ".3f")):
        assert f"<td>{record[key]:{form}}</td>" in text
    summary = json.loads((run / "summary.json").read_text())
    assert all(digest in text for digest in summary["training"]["files"].values())
    assert "n_radial_basis" in text
    # The cost, and where it was measured
    assert f"<td>{record['us_per_atom']:.3g} µs/atom</td>" in text and record["us_per_atom"] > 0
    assert f"by the run, on {record['machine']}." in text and "1 thread" in record["machine"]


def test_the_evaluation_of_another_run_is_refused(run, tmp_path, capsys):
    """Known by its weights and constants: a copy is the same."""
    words = ["evaluate", str(run), str(run.parent / "b <b>.extxyz"), "--bootstrap=0"]
    assert main([*words, "--out", str(tmp_path / "ev")]) == 0
    other = shutil.copytree(run, tmp_path / "other")
    words = ["report", str(other), "--evaluation", str(tmp_path / "ev")]
    assert main(words) == 0
    weights = load_file(other / "model.safetensors")
    with safe_open(other / "model.safetensors", "pt") as file:
        about = file.metadata()
    weights["embedding"] += 1
    save_file(weights, other / "model.safetensors", about)
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'ev'}: is the evaluation of another model; expected one of {other}" in line


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


def test_a_mean_over_atoms_is_not_in_mev_an_atom(tmp_path, capsys):
    """Of the page and of what training and evaluation say."""
    from race.train.command import conclusion
    from race.train.training import train

    ase.io.write(tmp_path / "a.extxyz", [labelled(seed) for seed in range(12)])
    options = {"loss": "nll_e", "forces_weight": 0}
    train(make_config(tmp_path / "a.extxyz", {"pooling": "mean"}, options), tmp_path / "run")
    words = ["evaluate", str(tmp_path / "run"), str(tmp_path / "a.extxyz"), "--bootstrap=0"]
    assert main([*words, "--out", str(tmp_path / "ev")]) == 0
    assert main(["report", str(tmp_path / "run"), "--evaluation", str(tmp_path / "ev")]) == 0
    said = conclusion(tmp_path / "run") + capsys.readouterr().out
    text = (tmp_path / "run" / "report.html").read_text()
    assert "meV/atom" not in said + text
    assert text.count("1e-3 of the target&#39;s unit") == 2
    assert "1e-3 of the target's unit" in said
    # What to type next, and where the figures will be
    assert f"next:  race report {tmp_path / 'run'}\n" in said and "run/report.html" in said
    assert f"race report {tmp_path / 'run'} --evaluation {tmp_path / 'ev'}" in said


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install playwright"
    )
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no browser: apt-get install chromium")
    with sync.sync_playwright() as tools:
        yield tools.chromium.launch(executable_path=program, args=["--no-sandbox"])


def look(browser, page, width, picture=None):
    """Width of the content on a screen of that width, a narrow one being a phone's, and what the
    console says is wrong.
    """
    problems = []
    screen = {"width": width, "height": 900}
    tab = browser.new_page(viewport=screen, is_mobile=width < 600)
    tab.on("pageerror", lambda error: problems.append(error))
    tab.on("console", lambda said: problems.append(said) if said.type != "log" else None)
    tab.goto(page.as_uri())
    if picture is not None:
        tab.screenshot(path=picture, full_page=True)
    return tab.evaluate("document.documentElement.scrollWidth"), problems


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_screen_and_a_phone(run, browser, width):
    words = ["evaluate", str(run), f"test={run.parent / 'a.extxyz'}", "--bootstrap=0"]
    assert main([*words, "--out", str(run.parent / "seen")]) == 0
    page = run.parent / "seen.html"
    assert (
        main(["report", str(run), "--evaluation", str(run.parent / "seen"), "-o", str(page)]) == 0
    )
    content, problems = look(browser, page, width, page.with_name(f"{width}.png"))
    assert content <= width and problems == []


def test_the_browser_sees_what_is_wrong(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'>"
        "<div style='width: 500px'>wide</div><img src=none.png>"
        "<script>console.error('planted'); nothing.there</script>"
    )
    content, problems = look(browser, page, 390)
    assert content >= 500 and len(problems) == 3
    assert look(browser, page, 1280)[0] == 1280
