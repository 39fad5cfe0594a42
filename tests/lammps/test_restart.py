"""Restart files carry the commands and the model's hash; a trajectory goes on as if it had
not stopped.
"""

import shutil

import numpy as np
import pytest

from .conftest import ELEMENTS
from .harness import read_dump, thermo, write_data
from .systems import b2o3

HEAD = """
units metal
atom_style atomic
plugin load {plugin}
"""
TAIL = """
thermo_style custom step pe
thermo_modify format float %.17g
thermo 10
timestep 0.0005
fix nve all nve
dump d all custom 10 {name}.dump id fx fy fz
dump_modify d sort id format float %.17g
run {steps}
"""
FIRST = "read_data system.data\n{pair}\nvelocity all create 600 12 loop geom\n"


@pytest.fixture
def stopped(lammps_run, artifact):
    """A run of 10 + 10 steps, and one that wrote a restart file after its first 10. The
    model is model.race.pt.
    """
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    shutil.copy(artifact, lammps_run.folder / "model.race.pt")

    def run(pair="pair_style race model.race.pt dtype float64\npair_coeff * * B N O"):
        script = (
            HEAD.format(plugin=lammps_run.plugin)
            + FIRST.format(pair=pair)
            + TAIL.format(name="whole", steps=20)
        )
        finished = lammps_run.run(
            script.replace("run 20", "run 10\nwrite_restart half.restart\nrun 10"), 2
        )
        assert finished.status == 0 and not finished.hung, finished.output
        return thermo(finished.output)[-1]["PotEng"], read_dump(lammps_run.folder / "whole.dump")[
            -1
        ]

    return run


def resume(run, commands="", ranks=2):
    script = (
        HEAD.format(plugin=run.plugin)
        + f"read_restart half.restart\n{commands}\n"
        + TAIL.format(name="resumed", steps=10)
    )
    return run.run(script, ranks)


@pytest.mark.parametrize("hybrid", [False, True])
def test_resumed_run_goes_on(lammps_run, stopped, hybrid):
    """Without pair_style or pair_coeff; under hybrid LAMMPS wants pair_coeff again. On
    another number of ranks.
    """
    pair = (
        "pair_style hybrid race model.race.pt zero 2.0\npair_coeff * * race B N O\npair_coeff 2 2 "
        "zero"
        if hybrid
        else None
    )
    energy, last = stopped(pair) if hybrid else stopped()
    finished = resume(
        lammps_run, "pair_coeff * * race B N O\npair_coeff 2 2 zero" if hybrid else "", ranks=1
    )
    assert finished.status == 0 and not finished.hung, finished.output
    assert thermo(finished.output)[-1]["PotEng"] == pytest.approx(energy, abs=1e-7)
    found = read_dump(lammps_run.folder / "resumed.dump")[-1]
    for axis in ("fx", "fy", "fz"):
        np.testing.assert_allclose(found[axis], last[axis], atol=1e-7)


def test_another_file_of_the_same_name_is_refused(lammps_run, stopped, artifacts):
    stopped()
    another = artifacts("restart_other", scale=[0.3, 0.5, 0.43])
    shutil.copy(another, lammps_run.folder / "model.race.pt")
    finished = resume(lammps_run)
    assert finished.status != 0 and not finished.hung
    assert any("with which the restart file was written" in line for line in finished.errors()), (
        finished.output
    )
    # The user may insist.
    finished = resume(lammps_run, "pair_style race model.race.pt\npair_coeff * * B N O")
    assert finished.status == 0 and not finished.hung, finished.output
    assert "the restart file was written with" in finished.output


def test_moved_file(lammps_run, stopped):
    energy, _ = stopped()
    (lammps_run.folder / "model.race.pt").rename(lammps_run.folder / "moved.race.pt")
    finished = resume(lammps_run)
    assert finished.status != 0 and not finished.hung
    (line,) = (line for line in finished.errors() if "model.race.pt: cannot open" in line)
    assert "give pair_style race FILE and pair_coeff again" in line
    finished = resume(lammps_run, "pair_style race moved.race.pt\npair_coeff * * B N O")
    assert finished.status == 0 and "the restart file was written with" not in finished.output
    assert thermo(finished.output)[-1]["PotEng"] == pytest.approx(energy, abs=1e-7)


def test_another_pair_style_forgets_the_first(lammps_run, artifact):
    """Elements belong to the model that was given when they were: a second pair_style wants
    its own pair_coeff.
    """
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    script = (
        HEAD.format(plugin=lammps_run.plugin)
        + f"""
    read_data system.data
    pair_style race {artifact}
    pair_coeff * * B N O
    run 0
    pair_style race {artifact} dtype float32
    run 0
    """
    )
    finished = lammps_run.run(script)
    assert finished.status != 0 and any("pair coeffs" in line for line in finished.errors()), (
        finished.output
    )
