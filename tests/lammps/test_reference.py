"""The tables of the reference pages are those of librace, row by row."""

import re

import pytest
import race._race

from .conftest import ROOT

ROW = re.compile(r"^\| `([^` ]+)(?:` P|( P)`|`) \| (\d+|M) \| (.*) \|$", re.MULTILINE)
HEADINGS = {
    "lammps_plugin/README.md": {True: "## compute race/atom", False: "## compute race\n"},
    "README.md": {True: "| `compute ID group race/atom", False: "| `compute ID all race"},
}


@pytest.mark.parametrize("per_atom", [True, False])
@pytest.mark.parametrize("page", HEADINGS)
def test_tables(page, per_atom):
    text = (ROOT / page).read_text().split(HEADINGS[page][per_atom], 1)[1]
    lines = text[text.index("|---") :].splitlines()[1:]
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        match = ROW.match(line)
        assert match, f"not a row of the table: {line}"
        table.append((match[1], match[3], match[4]))
    rows = [
        (row["name"], str(row["n_columns"] or "M"), row["meaning"])
        for row in race._race.quantities()
        if row["per_atom"] == per_atom and row["in_lammps"]
    ]
    if page == "README.md":  # which says it in fewer words
        table, rows = ([row[:2] for row in each] for each in (table, rows))
    assert table == rows
