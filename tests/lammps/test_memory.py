"""`memory MiB`: the same numbers from atoms taken in parts; what is said at the start; and
the refusal of what cannot be kept.
"""

import re

import pytest

from .compare import as_dict, assert_close
from .conftest import ELEMENTS
from .harness import thermo, write_data
from .systems import boron_nitride, slab

INPUT = """
units metal
atom_style atomic
read_data system.data
plugin load {plugin}
pair_style race {artifact} {model}
pair_coeff * * B N O
thermo_style custom step pe
thermo_modify format float %.17g
run 0
run 2
"""
LARGE = boron_nitride((5, 5, 4), seed=6)  # 800 atoms: three ghosts for each
SAID = re.compile(
    r"RACE memory per rank: ([\d.]+) MiB, ([\d.]+) MiB on steps with uncertainties(.*); neighbors "
    r"([\d.]+) MiB"
)


@pytest.fixture
def run(lammps_run, artifact):
    def run(model="", ranks=1, atoms=None):
        write_data(lammps_run.folder / "system.data", atoms or LARGE, ELEMENTS)
        finished = lammps_run.run(
            INPUT.format(plugin=lammps_run.plugin, artifact=artifact, model=model), ranks
        )
        assert not finished.hung
        return finished

    return run


def said(output):
    (line,) = SAID.findall(output)  # once, though there are two runs
    return float(line[0]), float(line[1]), line[2], float(line[3])


def test_estimate_is_said_once(run):
    plain, uncertain, _, neighbors = said(run().output)
    assert 1 < plain < uncertain < 100 and 0 < neighbors < plain
    halves, _, _, _ = said(run(ranks=2).output)
    assert halves < 0.8 * plain


@pytest.mark.parametrize("ranks, newton", [(1, "on"), (2, "off"), (4, "on")])
def test_parts_change_nothing(run, lammps_run, artifact, ranks, newton):
    """A cap between what one part and what many take. In the slab on four ranks, ranks of
    many parts, of one and of no atom meet.
    """
    systems = {"crystal": LARGE, "slab": slab()}
    plain, uncertain, _, _ = said(run(ranks=ranks).output)
    options = dict(ranks=ranks, grid=f"{ranks} 1 1", setup=f"newton {newton}")
    free = lammps_run.single_points(systems, f"{artifact}", ELEMENTS, **options)
    capped = lammps_run.single_points(
        systems, f"{artifact} memory {0.9 * uncertain:.4g}", ELEMENTS, **options
    )
    for name in systems:
        assert_close(as_dict(capped[name]), as_dict(free[name]), 1e-10, name)
    _, _, cap, _ = said(run(f"memory {0.9 * plain:.4g}", ranks).output)
    assert "in parts" in cap


def test_dynamics(run, lammps_run):
    plain, _, _, _ = said(run().output)
    energies = [
        [row["PotEng"] for row in thermo(run(model).output)]
        for model in ("", f"memory {0.9 * plain:.4g}")
    ]
    assert len(energies[0]) == 3 and energies[0] == pytest.approx(energies[1], abs=1e-9)


def test_too_little(run):
    finished = run("memory 0.1", ranks=2)
    assert finished.status != 0
    assert finished.errors(), finished.output
    line = finished.errors()[0]
    expected = (
        r"memory: expected at least \d+ MiB for the (?:39|40)\d atoms and \d+ ghosts of "
        r"rank [01], got 0.1; use more ranks"
    )
    assert re.search(expected, line)


@pytest.mark.parametrize("value", ["0", "-3", "inf", "much"])
def test_mistakes(run, value):
    finished = run(f"memory {value}")
    assert finished.status != 0 and (
        f"got {value}" in finished.output
        or "numeric" in finished.output
        or "floating" in finished.output
    )
