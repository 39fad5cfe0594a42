"""The reference pages: their tables are those of librace, row by row; every example of the
plugin's page runs, and shows every keyword and quantity that a table names.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import race._race
import torch

from race.data.graph import build_graph
from race.deploy.export import alone, export_model

from .conftest import ELEMENTS, ROOT, small_model
from .harness import thermo, write_data
from .systems import b2o3, slab
from .test_kokkos import FOLDER, KOKKOS
from .test_kokkos import lammps as lammps_with_kokkos

PAGE = "lammps_plugin/README.md"
ROW = re.compile(r"^\| `([^` ]+)(?:` P|( P)`|`) \| (\d+|M) \| (.*) \|$", re.MULTILINE)
HEADINGS = {
    PAGE: {True: "## compute race/atom", False: "## compute race\n"},
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


def examples() -> dict[str, list[str]]:
    """Of each section of the plugin's page. An empty line ends an example."""
    found = {}
    for section in (ROOT / PAGE).read_text().split("\n## "):
        blocks = re.findall(r"^```lammps\n(.*?)^```", section, flags=re.M | re.S)
        found[section.partition("\n")[0]] = [
            each for block in blocks for each in block.strip().split("\n\n")
        ]
    return found


ALL = examples()


def test_every_command_and_keyword_has_an_example():
    for section in (ROOT / PAGE).read_text().split("\n## ")[1:]:
        command, _, text = section.partition("\n")
        if command.startswith(("pair_style ", "compute ", "fix ")):
            shown = "\n".join(ALL[command])
            syntax = text.partition("### Syntax")[2].partition("### Examples")[0]
            names = [
                command.split()[1].removesuffix("/kk"),
                *re.findall(r"^\| `([^` ]+)", text, flags=re.M),
                *re.findall(r"\[(\w+)", syntax),
            ]
            for name in names:
                assert re.search(rf"(?<!\S){name}(?!\S)", shown), f"{command}: no example of {name}"


INPUT = """
units metal
atom_style atomic
read_data {data}
plugin load ./raceplugin.so
{pair}
group hot id 1:10
variable lambda equal ramp(0.5,1.0)
velocity all create 300.0 4928459
timestep 0.0005
fix md all nve
{example}
run 10
"""
ONE = "pair_style race b2o3.race.pt\npair_coeff * * B O"
TWO = next(each for each in ALL["pair_style race"] if "hybrid/overlay" in each)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """With everything that a keyword or a quantity may need."""
    frames = []
    for seed in range(5):
        frame = b2o3()
        frame.rattle(0.05, seed=seed)
        frames.append(build_graph(frame, ELEMENTS, 3.2, torch.float64))
    path, made = tmp_path_factory.mktemp("reference") / "model.race.pt", small_model()
    factors = {target: [0.7, 2.0, 2.6] for target in ("forces", "energy", "stress")}
    pairs, neighbors = {"B-B": 1.2, "B-O": 1.2, "O-O": 1.2}, {"B": [4, 20], "O": [4, 20]}
    training = {"cutoff": 3.2, "min_distance": pairs, "n_neighbors": neighbors}
    export_model(
        made,
        path,
        intervals={"levels": [0.5, 0.95, 0.99], **factors},
        summary={"training": training},
        training_set=frames,
        leaders=alone(made),
    )
    return path


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(each, id=f"{section}-{k}")
        for section, each_of in ALL.items()
        for k, each in enumerate(each_of)
    ],
)
def test_an_example_runs(example, lammps_run, model):
    """In dynamics, with the pair style of ONE or TWO before it if it names none."""
    if "suffix kk" in example:
        if not FOLDER:
            pytest.skip("RACE_KOKKOS is not set: this LAMMPS has no KOKKOS")
        lammps_run = lammps_with_kokkos(lammps_run.folder, KOKKOS)
    for name in set(re.findall(r"\S+\.race\.pt", "\n".join(ALL["pair_style race"]))):
        (lammps_run.folder / name).symlink_to(model)
    (lammps_run.folder / "raceplugin.so").symlink_to(lammps_run.plugin)
    digest = race._race.read_artifact(str(model)).sha256
    example = re.sub(r"(?<=sha256 )\w+", digest[:8], example)
    if not torch.cuda.is_available():
        example = example.replace("device cuda", "device cpu")

    pair = TWO if "race:2" in example else ONE
    if "pair_style" in example:
        pair = ""
    if "NULL" in example:
        atoms, types = slab(), ["B", "N", "O"]
        atoms.append("O")
        atoms.positions[-1] = [14.0, 3.0, 3.0]
    else:
        atoms, types = b2o3(), ["B", "O"]
    write_data(lammps_run.folder / "system.data", atoms, types)
    text = INPUT.format(data="system.data", pair=pair, example=example)
    finished = lammps_run.run(text, 2)
    assert finished.status == 0 and not finished.hung, finished.output
    rows = thermo(finished.output)
    assert rows[-1]["Step"] == 10 and np.isfinite([list(row.values()) for row in rows]).all()
