"""A model on top of a potential that LAMMPS has: the lines that `race export` prints give in
LAMMPS what the calculator gives in Python.
"""

import numpy as np
import pytest

import race
from race.config import BaselineOptions
from race.deploy.command_export import said
from race.deploy.export import export_model

from .conftest import ELEMENTS, small_model
from .harness import NKTV2P, read_dump, thermo, write_data
from .systems import b2o3

TYPES = ["O", "B", "N"]  # another order than the model's
LJ = ["pair_style lj/cut 3.5", "pair_coeff * * 0.2 1.3", "pair_coeff 1 2 0.3 1.2"]
TWO = [
    "pair_style hybrid/overlay lj/cut 3.5 zbl 1.5 2.5",
    "pair_coeff * * lj/cut 0.2 1.3",
    *("pair_coeff 1 1 zbl 8 8", "pair_coeff 2 2 zbl 5 5", "pair_coeff 3 3 zbl 7 7"),
    *("pair_coeff 1 2 zbl 8 5", "pair_coeff 1 3 zbl 8 7", "pair_coeff 2 3 zbl 5 7"),
]


def exported(folder, commands):
    model = small_model(n_members=2)
    baseline = BaselineOptions(lammps=commands, elements=TYPES)
    model.constants = model.constants.model_copy(update={"baseline": baseline})
    export_model(model, folder / "x.race.pt")
    return folder / "x.race.pt", said(baseline, folder / "x.race.pt", ELEMENTS)


@pytest.mark.parametrize("commands", [LJ, TWO], ids=["one", "two"])
def test_the_printed_lines_add_it(lammps_run, commands):
    path, lines = exported(lammps_run.folder, commands)
    atoms = b2o3()
    atoms.rattle(0.05, seed=3)
    write_data(lammps_run.folder / "system.data", atoms, TYPES)
    pair = "\n".join(line.strip() for line in lines[1:])
    script = f"""
    units metal
    atom_style atomic
    read_data system.data
    plugin load {lammps_run.plugin}
    {pair}
    compute p all pressure NULL virial
    compute u all race/atom force/std
    thermo_style custom step pe vol c_p[*]
    thermo_modify format float %.17g
    dump d all custom 1 out.dump id fx fy fz c_u
    dump_modify d sort id format float %.17g
    run 0
    """
    finished = lammps_run.run(script, 1)
    assert finished.status == 0 and not finished.hung, finished.output
    row, frame = thermo(finished.output)[0], read_dump(lammps_run.folder / "out.dump")[0]
    atoms.calc = race.Calculator(path, uncertainty=True)
    assert row["PotEng"] == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
    forces = np.stack([frame[a] for a in ("fx", "fy", "fz")], axis=1)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-8)
    pressure = np.array([row[f"c_p[{k}]"] for k in range(1, 7)]) / NKTV2P
    voigt = [0, 1, 2, 5, 4, 3]
    np.testing.assert_allclose(-pressure, atoms.get_stress()[voigt], atol=1e-8)
    assert np.abs(forces - atoms.calc.predictor.members(atoms).forces.mean(1).numpy()).max() > 0.1


def test_alone_it_is_refused(lammps_run):
    path, _ = exported(lammps_run.folder, LJ)
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    script = f"""
    units metal
    atom_style atomic
    read_data system.data
    plugin load {lammps_run.plugin}
    pair_style race {path}
    pair_coeff * * B N O
    run 0
    """
    finished = lammps_run.run(script, 1)
    assert finished.status != 0 and not finished.hung
    assert any("adds to a baseline" in line for line in finished.errors()), finished.output
