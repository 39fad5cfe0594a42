"""`uq every N` between its evaluations: values stay with their atoms, and nothing is left behind
that other commands stumble over.
"""

import re

import numpy as np
import pytest

from .conftest import ELEMENTS
from .harness import read_dump, thermo, write_data
from .systems import b2o3

HEAD = """
units metal
atom_style atomic
read_data system.data
plugin load {plugin}
pair_style race {artifact} uq every 4
pair_coeff * * B N O
velocity all create 300 12 loop geom
compute u all race/atom force/std energy/std
compute U all race energy/std
thermo_style custom step atoms pe c_U
thermo_modify format float %.17g
thermo 1
"""


@pytest.fixture
def run(lammps_run, artifact):
    def run(commands, ranks=2):
        write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
        head = HEAD.format(plugin=lammps_run.plugin, artifact=artifact)
        finished = lammps_run.run(head + commands, ranks)
        assert finished.status == 0 and not finished.hung, finished.output
        return finished.output

    return run


def test_replicate_after_a_run(run):
    """LAMMPS refuses to replicate with a fix that stores atom quantities."""
    rows = thermo(run("run 0\nreplicate 2 1 1\nfix nve all nve\nrun 5"))
    assert rows[1]["Atoms"] == 2 * rows[0]["Atoms"]
    assert rows[1]["PotEng"] == pytest.approx(2 * rows[0]["PotEng"], abs=1e-8)
    assert rows[2]["c_U"] == rows[1]["c_U"] and rows[5]["c_U"] != rows[1]["c_U"]


def test_the_fix_may_be_deleted(run):
    """Values are evaluated then, instead of held; the next run holds again."""
    fix = re.search(r"PAIR_RACE_HOLD_\d+", run("run 0\ninfo fixes"))[0]
    commands = f"""
    fix nve all nve
    run 2
    unfix {fix}
    run 1 pre no
    run 2
    """
    rows = thermo(run(commands))
    assert all(row["c_U"] > 0 for row in rows) and rows[-1]["c_U"] == rows[-2]["c_U"]


def test_new_atoms_have_zeros(run, lammps_run):
    """Until they are evaluated; the others keep what they had."""
    commands = """
    region cell block 2 5 2 5 2 5
    fix new all deposit 1 3 1 77 region cell near 0.6
    dump d all custom 1 out.dump id c_u[*]
    dump_modify d sort id format float %.17g
    fix nve all nve
    run 4
    """
    run(commands, ranks=1)
    frames = read_dump(lammps_run.folder / "out.dump")
    n = len(frames[0]["id"])
    assert [len(frame["id"]) for frame in frames] == [n] + [n + 1] * 4
    for frame in frames[1:4]:
        assert frame["c_u[1]"][-1] == 0 and frame["c_u[2]"][-1] == 0
        np.testing.assert_array_equal(frame["c_u[1]"][:-1], frames[0]["c_u[1]"])
    assert frames[4]["c_u[1]"][-1] > 0


def test_fix_pair_after_growth(lammps_run, artifact):
    """`fix pair ... 0` reads what is there: zeros for atoms that came since, also where LAMMPS has
    made room for more than there was.
    """
    script = f"""
    units metal
    atom_style atomic
    region box block 0 60 0 60 0 60
    create_box 4 box
    create_atoms 1 single 5 5 5
    create_atoms 3 single 6 5.5 5
    mass * 15.999
    mass 1 10.811
    mass 2 14.007
    plugin load {lammps_run.plugin}
    pair_style hybrid race {artifact} lj/cut 1.0
    pair_coeff * * race B N O NULL
    pair_coeff * 4 lj/cut 0.0 1.0
    fix filled all pair 1 race f_cov 0 f_std 0
    fix asked all pair 1 race f_cov 1
    run 0
    unfix asked
    create_atoms 4 random 20000 77 NULL
    dump d all custom 1 out.dump id f_filled[*]
    dump_modify d sort id format float %.17g
    run 1
    """
    finished = lammps_run.run(script)
    assert finished.status == 0 and not finished.hung, finished.output
    frame = read_dump(lammps_run.folder / "out.dump")[-1]
    assert len(frame["id"]) == 20002
    for k in range(1, 8):
        assert np.all(frame[f"f_filled[{k}]"][2:] == 0)


@pytest.mark.parametrize("between", ["", "clear\n"], ids=["another pair_style", "clear"])
def test_nothing_of_it_is_left(between, lammps_run, artifact, artifacts):
    """Another model after it: evaluated on every step that reads it, without a fix that holds."""
    other = artifacts("uq_other", n_members=2, n_layers=2)
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    head = HEAD.format(plugin=lammps_run.plugin, artifact=artifact)
    pair = f"pair_style race {other}\npair_coeff * * B N O\n"
    second = HEAD.format(plugin=lammps_run.plugin, artifact=other).replace(" uq every 4", "")
    moving = "fix nve all nve\n"
    again = second if between else pair

    def end(script: str) -> tuple[list[dict[str, float]], str]:
        finished = lammps_run.run(f"{script}info fixes\n", 2)
        assert finished.status == 0 and not finished.hung, finished.output
        return thermo(finished.output), finished.output.rsplit("Fix information", 1)[1]

    rows, fixes = end(f"{head}{moving}run 2\n{between}{again}{moving if between else ''}run 2\n")
    held, later = rows[:3], rows[3:]
    assert held[0]["c_U"] == held[2]["c_U"]
    assert len({row["c_U"] for row in (held[0], *later)}) == 4
    assert "PAIR_RACE_HOLD" not in fixes and "nve" in fixes
    if between:  # as if nothing had been before
        fresh, _ = end(f"{second}{moving}run 2\n")
        assert [row["c_U"] for row in later] == [row["c_U"] for row in fresh]
