"""No atoms, no atoms on some ranks, no atoms of the pair style: numbers, not NaN, and no word."""

import numpy as np
import pytest

from .harness import thermo

INPUT = """
units metal
atom_style atomic
processors {grid}
region box block 0 12 0 12 0 12
{make}
mass * 10
mass 1 10.811
mass 2 14.007
mass 3 15.999
plugin load {plugin}
{pair}
{fixes}
compute u all race/atom force/std bald interval 0.9
compute U all race energy/std bald max/bald max/force/std stress/std pressure/std energy/bald
compute r all reduce sum c_u[*]
thermo_style custom step atoms pe c_U[*] c_r[*]
thermo_modify format float %.17g
thermo 1
fix nve all nve
run 3
"""
NONE = "create_box 3 box"
PLAIN = "pair_style race {artifact}\npair_coeff * * B N O"


def run(lammps_run, artifact, make, ranks, grid, fixes="", pair=PLAIN):
    finished = lammps_run.run(
        INPUT.format(
            plugin=lammps_run.plugin,
            make=make,
            grid=grid,
            fixes=fixes,
            pair=pair.format(artifact=artifact),
        ),
        ranks,
    )
    assert finished.status == 0 and not finished.hung, finished.output
    return finished.output


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_atoms(lammps_run, artifact, ranks):
    """With a bias, a guard and uncertainties: everything is 0."""
    fixes = (
        "fix b all race/bias 1.0 0.1\nfix_modify b energy yes\n"
        "fix g all race/guard 1 warn overlap off unseen no force/std 0.1"
    )
    output = run(lammps_run, artifact, NONE, ranks, "* * *", fixes)
    rows = thermo(output)
    assert len(rows) == 4
    for row in rows:
        assert all(row[name] == 0 for name in row.keys() - {"Step"}), row
    assert "Warning" not in output, output


def test_ranks_without_atoms(lammps_run, artifact):
    """Two atoms on four ranks, two of which have none: the numbers of one rank, and no warning of
    torch.
    """
    make = "create_box 3 box\ncreate_atoms 1 single 1.0 1.0 1.0\ncreate_atoms 3 single 2.0 1.8 1.3"
    one, four = (
        run(lammps_run, artifact, make, ranks, grid, "fix b all race/bias 1.0 0.1")
        for ranks, grid in ((1, "1 1 1"), (4, "4 1 1"))
    )
    assert "Warning" not in four, four
    for a, b in zip(thermo(one), thermo(four), strict=True):
        assert a["c_U[1]"] > 0 and a["c_U[2]"] > 0
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-7, atol=1e-9)


def test_no_atoms_of_the_style(lammps_run, artifact):
    """Under hybrid, in a system of another style's atoms alone."""
    pair = (
        "pair_style hybrid race {artifact} lj/cut 3.0\n"
        "pair_coeff * * race B N O NULL\npair_coeff * 4 lj/cut 0.01 1.0"
    )
    make = "create_box 4 box\ncreate_atoms 4 random 20 77 NULL overlap 1.5"
    output = run(lammps_run, artifact, make, 2, "* * *", "fix b all race/bias 1.0 0.1", pair)
    for row in thermo(output):
        numbers = [row[f"c_U[{k}]"] for k in range(1, 12)] + [row["c_r[2]"]]
        assert numbers == [0] * 12, row
    assert "Warning" not in output, output
