"""What the documents say of the programs is so."""

import csv
import re

import pytest
import tyro
from stand_ins import ROOT

import evaluate
import export
import ppo_lstm
import ppo_palmer
import ppo_trxl
from scripts import list_flags

DOCUMENTS = [ROOT / "README.md", ROOT / "REPORT.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_list_of_flags_is_that_of_the_programs():
    assert list_flags.FILE.read_text(encoding="utf-8") == list_flags.document(), "python -m scripts.list_flags"


def test_the_list_of_flags_takes_none(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["list_flags.py", "--nonsense"])
    with pytest.raises(SystemExit) as stopped:
        list_flags.main()
    assert stopped.value.code == 2 and "--nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("script", [ppo_palmer, ppo_lstm, ppo_trxl, evaluate, export])
def test_the_list_of_flags_says_what_help_says(script, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(script.Args, args=["--help"])
    printed = re.sub(r"[\s│]", "", capsys.readouterr().out)
    of_training, *of_others = re.split(r"## `\w+\.py`", list_flags.document())
    table = {evaluate: of_others[0], export: of_others[1]}.get(script, of_training)
    rows = re.findall(r"^\| `(--.*)` \|.*\| (.*) \|$", table, re.M)
    texts = {flag: text for flag, text in rows if flag[2:].replace("-", "_") in script.Args.__dataclass_fields__}
    assert len(texts) == len(script.Args.__dataclass_fields__)
    assert [flag for flag, text in texts.items() if re.sub(r"\s", "", text) not in printed] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)[#)]", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_document_is_linked_from_the_readme():
    readme = DOCUMENTS[0].read_text(encoding="utf-8")
    assert all(re.search(rf"\]\({document.relative_to(ROOT)}[#)]", readme) for document in DOCUMENTS[1:])


def test_every_table_of_results_is_told_of():
    told = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    folders = [folder for folder in (ROOT / "results").iterdir() if folder.is_dir()]
    searched = [f"search/{file.name}" for file in (ROOT / "results" / "search").iterdir()]
    assert searched and [name for name in searched if f"`{name}`" not in told] == []
    assert [folder.name for folder in folders if f"`{folder.name}/" not in told] == []


def test_every_published_run_updated_the_policy_that_acted():
    for table in sorted((ROOT / "results").glob("*/curves.csv")):
        with open(table, newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        assert rows, table
        assert [row for row in rows if not float(row["ratio_error"]) < 1e-4] == [], table


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_links_to_a_heading_find_it(document):
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text(encoding="utf-8")):
        text = (document.parent / file if file else document).read_text(encoding="utf-8")
        headings = [
            re.sub(r"[^\w -]", "", line).replace(" ", "-") for line in re.findall(r"^#+ (.*)", text.lower(), re.M)
        ]
        assert anchor in headings
