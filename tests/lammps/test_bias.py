"""fix race/bias against its ASE twin, whose forces and stress are held against finite
differences (tests/deploy/test_bias.py).
"""

import numpy as np
import pytest

import race
from race.conventions import SIX_TO_VOIGT
from race.deploy.bias import BiasedCalculator

from .conftest import ELEMENTS
from .harness import NKTV2P, read_dump, thermo, write_data
from .systems import b2o3

HEIGHT, WIDTH = 3.0, 1.2  # eV: on the order of the spread of untrained members

INPUT = """
units {units}
atom_style atomic
read_data system.data
plugin load {plugin}
pair_style race {artifact} {model}
pair_coeff * * B N O
neighbor {skin} bin
velocity all create 600 12 loop geom
timestep {timestep}
fix nve all nve
fix b all race/bias {height} {width}
fix_modify b energy yes
compute p all pressure NULL virial fix
thermo_style custom step pe etotal vol c_p[*] f_b f_b[2]
thermo_modify format float %.17g
thermo {every}
dump d all custom {every} out.dump id x y z fx fy fz
dump_modify d sort id format float %.17g
{commands}
"""


def biased(
    run, artifact, commands="run 10", ranks=1, *, every=5, units="metal", model="", timestep=0.0005
):
    length, energy = {"metal": (1.0, 1.0), "real": (1.0, 23.060547830619)}[units]
    write_data(run.folder / "system.data", b2o3(), ELEMENTS, length)
    script = INPUT.format(
        units=units,
        plugin=run.plugin,
        artifact=artifact,
        model=model,
        skin=1.0,
        height=HEIGHT * energy,
        width=WIDTH * energy,
        every=every,
        commands=commands,
        timestep=timestep,
    )
    finished = run.run(script, ranks)
    assert finished.status == 0 and not finished.hung, finished.output
    return thermo(finished.output), read_dump(run.folder / "out.dump")


@pytest.mark.parametrize("ranks, model", [(1, ""), (2, ""), (4, ""), (2, "uq every 4")])
def test_bias_is_its_twin(lammps_run, artifact, ranks, model):
    """Energy, forces and virial of frames of biased dynamics, on any number of ranks."""
    rows, frames = biased(lammps_run, artifact, ranks=ranks, model=model)
    twin = BiasedCalculator(race.Calculator(artifact), HEIGHT, WIDTH)
    assert len(rows) == 3
    for row, frame in zip(rows, frames, strict=True):
        atoms = b2o3()
        atoms.positions = np.stack([frame[a] for a in "xyz"], axis=1)
        twin.calculate(atoms)
        found = twin.results
        assert (
            found["energy_bias"] < -0.1
            and np.abs(found["forces"] - twin.unbiased.get_forces(atoms)).max() > 0.01
        )
        assert row["PotEng"] == pytest.approx(found["energy"], abs=1e-9) and row[
            "f_b"
        ] == pytest.approx(found["energy_bias"], abs=1e-9)
        assert row["f_b[2]"] == pytest.approx(found["energy_var"] ** 0.5, abs=1e-9)
        np.testing.assert_allclose(
            np.stack([frame[f"f{a}"] for a in "xyz"], axis=1), found["forces"], atol=1e-9
        )
        virial = np.array([row[f"c_p[{k}]"] for k in range(1, 7)]) * row["Volume"] / NKTV2P
        np.testing.assert_allclose(
            virial, -found["stress"][list(SIX_TO_VOIGT)] * atoms.get_volume(), atol=1e-9
        )


def test_units(lammps_run, artifact):
    metal, real = (
        biased(lammps_run, artifact, "run 0"),
        biased(lammps_run, artifact, "run 0", units="real"),
    )
    assert real[0][0]["f_b"] / 23.060547830619 == pytest.approx(metal[0][0]["f_b"], rel=1e-9)
    np.testing.assert_allclose(real[1][0]["fx"] / 23.060547830619, metal[1][0]["fx"], atol=1e-8)


def test_energy_is_conserved_and_minimized(lammps_run, artifact):
    """The bias is a potential: NVE keeps the sum, 16 times better at a quarter of the time
    step; minimize goes down in it.
    """
    spread = {}
    for factor in (1, 4):
        rows, _ = biased(
            lammps_run, artifact, f"run {20 * factor}", every=2 * factor, timestep=0.0004 / factor
        )
        spread[factor] = np.std([row["TotEng"] for row in rows])
        assert np.ptp([row["f_b"] for row in rows]) > 20 * np.ptp([row["TotEng"] for row in rows])
    assert spread[1] / spread[4] == pytest.approx(16, rel=0.25)
    rows, _ = biased(lammps_run, artifact, "minimize 0 1e-3 10 30", every=10)
    assert rows[-1]["PotEng"] < rows[0]["PotEng"] - 0.1


@pytest.mark.parametrize(
    "line, expected",
    [
        ("fix x all race/bias 1.0", "missing argument"),
        ("fix x all race/bias 1.0 0", "B > 0, got 0"),
        ("fix x all race/bias a 1", "got a"),
        ("fix x all race/bias 1 1 1", "nothing after"),
        ("group g id 1\nfix x g race/bias 1 1", "expected group all, got g"),
        ("run_style respa 2 2 bond 1 pair 2\nrun 0", "run_style verlet"),
    ],
)
def test_mistakes(lammps_run, artifact, line, expected):
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    script = INPUT.format(
        units="metal",
        plugin=lammps_run.plugin,
        artifact=artifact,
        model="",
        skin=1.0,
        height=1,
        width=1,
        every=1,
        commands=line,
        timestep=1e-3,
    )
    finished = lammps_run.run(script, 2)
    assert finished.status != 0 and not finished.hung
    assert any(expected in text or "instead of 'a'" in text for text in finished.errors()), (
        finished.output
    )


def test_one_member(lammps_run, artifacts):
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    script = INPUT.format(
        units="metal",
        plugin=lammps_run.plugin,
        artifact=artifacts("bias_one", n_members=1),
        model="",
        skin=1.0,
        height=1,
        width=1,
        every=1,
        commands="run 0",
        timestep=1e-3,
    )
    finished = lammps_run.run(script)
    assert finished.status != 0 and "one member; expected an ensemble" in finished.errors()[0]
