import re
from html.parser import HTMLParser

import pytest
from conftest import ROOT
from finished import write_classifier

from ptft_recipes.comparison import compare_arms, read_arms
from ptft_recipes.studies import FAILED, FINISHED, plan_cells
from ptft_recipes.study_files import read_study
from ptft_recipes.study_page import write_page

STUDY = """\
# a study of <b>&amp; "quotes"</b>
seeds: [1, 2, 3]
baseline: base
arms:
  base: {recipe: finetune_cls}
  better: {recipe: finetune_cls, learning_rate: 1e-3}
  same: {recipe: finetune_cls, learning_rate: 2e-4}
"""


class Page(HTMLParser):
    """Collects tags, what they refer to, and text; checks that they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in ("meta", "br", "line", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a study with a run that failed."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY)
    study = read_study(folder / "study.yaml", ROOT / "recipes", folder)
    cells = plan_cells(study)
    for cell in cells:
        if cell.name != "same-seed3":
            right = {"base": 0.6, "better": 0.9, "same": 0.6}[cell.arm]
            write_classifier(cell.output_dir, right, cell.seed + 10 * (cell.arm == "same"), hardware="<CPU>")
            path = cell.output_dir / "results.json"
            path.write_text(path.read_text().replace(f'"seed": {cell.seed + 10}', f'"seed": {cell.seed}'))
    arms, left_out = read_arms({arm: [study.folder(arm, seed) for seed in study.seeds] for arm in study.arms})
    states = {cell: FINISHED if cell.is_finished() else FAILED for cell in cells}
    comparison = compare_arms(arms, study.baseline, resamples=200) | {"left_out": left_out}
    write_page(folder / "report.html", study, comparison, arms, cells, states)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_it_is_complete_in_one_file(page):
    parsed = Page(page)
    assert parsed.links == []
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert "url(" not in page
    assert "http" not in page
    assert parsed.tags.count("svg") == 3 + 2 + 2, "a mean per arm, two differences, two scales"


def test_it_says_what_was_found(page):
    text = " ".join(Page(page).texts)
    assert re.search(r"better\s+is\s+better\s+\(\+0\.\d+ \[\+", text)
    assert re.search(r"same\s+cannot be told from the baseline", text)
    assert "Left out:" in text
    assert "logs/same-seed3.log" in text
    for needed in ("5.23.0", "<CPU>", "0" * 40, "learning_rate: 1e-3", 'a study of <b>&amp; "quotes"</b>', "12 s"):
        assert needed in text, needed


def test_it_fits_narrow_screens_and_dark_ones(page):
    assert '<meta name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    assert page.count('<div class="wide"><table>') == page.count("<table>") >= 4


def test_every_mark_is_inside_its_drawing(page):
    places = [float(x) for x in re.findall(r'(?:x1|x2|cx|x)="(-?[\d.]+)"', page)]
    assert len(places) > 30
    assert 0 <= min(places) <= max(places) <= 210
