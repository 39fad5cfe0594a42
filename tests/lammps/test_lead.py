"""`lead M`: one member moves the atoms, all members say how sure they are."""

import numpy as np
import pytest

from race.deploy.export import alone, export_model
from race.errors import RaceError

from .conftest import ELEMENTS, small_model
from .harness import thermo, write_data
from .systems import b2o3, boron_nitride

MD = """
units metal
atom_style atomic
read_data system.data
plugin load {plugin}
pair_style race {model}
pair_coeff * * B N O
velocity all create 600 12 loop geom
timestep 0.0005
fix nve all nve
{commands}
"""
ONE = ["force/std", "energy/std"]  # what a member alone has
EXACT = "thermo_modify format float %.17g\nthermo 1"


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """Three members, each carried alone too, and a distilled one: another network."""
    path = tmp_path_factory.mktemp("lead") / "ensemble.race.pt"
    model = small_model()
    distilled = small_model(n_members=1, scale=[0.35, 0.5, 0.4], irreps_hidden="6x0e+4x1o+2x2e")
    export_model(model, path, leaders={**alone(model), "distilled": distilled})
    return path


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """The same as artifacts of their own, by name."""
    folder = tmp_path_factory.mktemp("members")
    model = small_model()
    distilled = small_model(n_members=1, scale=[0.35, 0.5, 0.4], irreps_hidden="6x0e+4x1o+2x2e")
    paths = {}
    for name, each in {**alone(model), "distilled": distilled}.items():
        paths[name] = folder / f"{name}.race.pt"
        export_model(each, paths[name])
    return paths


def md(lammps_run, model, commands, ranks=2, atoms=None):
    write_data(lammps_run.folder / "system.data", atoms or b2o3(), ELEMENTS)
    finished = lammps_run.run(
        MD.format(plugin=lammps_run.plugin, model=model, commands=commands), ranks
    )
    assert finished.status == 0 and not finished.hung, finished.output
    return finished.output


def energy_of(lammps_run, atoms, pair) -> float:
    """With any pair style."""
    write_data(lammps_run.folder / "system.data", atoms, ELEMENTS)
    finished = lammps_run.run(
        f"units metal\natom_style atomic\nread_data system.data\n{pair}\nthermo_style custom step "
        "pe\nthermo_modify format float %.17g\nrun 0"
    )
    assert finished.status == 0, finished.output
    return thermo(finished.output)[0]["PotEng"]


@pytest.mark.parametrize("name", ["1", "3", "distilled"])
def test_the_leader_moves_and_all_members_judge(lammps_run, ensemble, members, name):
    """Energy, forces, virials, also of atoms, are those of the leader's own artifact; uncertainties
    those of the whole ensemble at the same positions.
    """
    columns = ["force/cov", "force/epistemic", "energy/std"]
    systems = {"b2o3": b2o3(), "bn": boron_nitride()}
    found = lammps_run.single_points(
        systems, f"{ensemble} lead {name}", ELEMENTS, ranks=2, columns=columns
    )
    mean = lammps_run.single_points(systems, f"{ensemble}", ELEMENTS, columns=columns)
    own = lammps_run.single_points(systems, f"{members[name]}", ELEMENTS, columns=ONE)
    for system in systems:
        a, b, c = found[system], own[system], mean[system]
        assert abs(b.energy - c.energy) > 1e-3
        assert a.energy == pytest.approx(b.energy, abs=1e-9)
        for field in ("forces", "virial", "atom_energy", "atom_virial"):
            np.testing.assert_allclose(getattr(a, field), getattr(b, field), atol=1e-8)
        for column in columns:
            key = {"force/cov": "f_cov", "force/epistemic": "f_epistemic", "energy/std": "e_std"}
            np.testing.assert_allclose(a.columns[key[column]], c.columns[key[column]], atol=1e-10)
        np.testing.assert_allclose(a.stress_std, c.stress_std, rtol=1e-8)


def test_the_trajectory_is_the_leaders(lammps_run, ensemble, members):
    """With uncertainties every third step, step by step the run of one member; it conserves."""
    commands = f"thermo_style custom step pe etotal {{}}\n{EXACT}\nrun 30"
    asked = "compute U all race energy/std energy/members\n" + commands.format("c_U[*]")
    led = thermo(md(lammps_run, f"{ensemble} lead 2 uq every 3", asked))
    own = thermo(md(lammps_run, f"{members['2']}", commands.format("")))
    np.testing.assert_allclose(
        [row["PotEng"] for row in led], [row["PotEng"] for row in own], atol=1e-8
    )
    assert np.ptp([row["TotEng"] for row in led]) < 0.05 * np.ptp([row["PotEng"] for row in led])
    for row in led[::3]:
        assert row["c_U[3]"] == pytest.approx(row["PotEng"], abs=1e-8)
    assert led[1]["c_U[1]"] == led[0]["c_U[1]"] != led[3]["c_U[1]"]


def test_restart_goes_on_with_the_leader(lammps_run, ensemble):
    style = f"thermo_style custom step pe\n{EXACT}\n"
    whole = thermo(
        md(lammps_run, f"{ensemble} lead 3", f"{style}run 5\nwrite_restart half.restart\nrun 5")
    )
    finished = lammps_run.run(
        f"units metal\natom_style atomic\nplugin load {lammps_run.plugin}\n"
        f"read_restart half.restart\ntimestep 0.0005\nfix nve all nve\n{style}run 5",
        1,
    )
    assert finished.status == 0, finished.output
    assert "led by 3" in finished.output
    assert thermo(finished.output)[-1]["PotEng"] == pytest.approx(whole[-1]["PotEng"], abs=1e-8)


def test_float32_and_newton_off(lammps_run, ensemble, members):
    setup = {"setup": "newton off", "ranks": 2}
    led = lammps_run.single_point(b2o3(), f"{ensemble} lead 1 dtype float32", ELEMENTS, **setup)
    own = lammps_run.single_point(b2o3(), f"{members['1']}", ELEMENTS, columns=ONE)
    np.testing.assert_allclose(led.forces, own.forces, atol=5e-4)


@pytest.mark.parametrize("name", ["1", "distilled"])
def test_float32_under_hybrid(lammps_run, ensemble, members, name):
    """The leader beside another style, read by pair_style or by pair_coeff."""
    atoms = b2o3()
    own = lammps_run.single_point(atoms, f"{members[name]} dtype float32", ELEMENTS, columns=ONE)
    mean = lammps_run.single_point(atoms, f"{ensemble} dtype float32", ELEMENTS)
    lj = "pair_coeff * * lj/cut 0.01 1.2"
    plain = energy_of(lammps_run, atoms, "pair_style lj/cut 3.0\npair_coeff * * 0.01 1.2")
    options = f"lead {name} dtype float32"
    for pair in (
        f"pair_style hybrid/overlay race {ensemble} {options} lj/cut 3.0\n"
        f"pair_coeff * * race B N O\n{lj}",
        f"pair_style hybrid/overlay lj/cut 3.0 race {options}\n"
        f"{lj}\npair_coeff * * race {ensemble} B N O",
    ):
        found = lammps_run.single_point(atoms, "", ELEMENTS, ranks=2, pair=pair)
        assert found.energy == pytest.approx(own.energy + plain, abs=1e-4)
        np.testing.assert_allclose(found.columns["f_cov"], mean.columns["f_cov"], atol=1e-4)
    assert abs(plain) > 1e-2 and abs(own.energy - mean.energy) > 1e-2


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_leader_wider_than_the_ensemble(lammps_run, tmp_path, ranks):
    """Its rows are wider than all members' together: LAMMPS makes room for them."""
    wide = small_model(n_members=1, irreps_hidden="48x0e+48x1o+48x2e", n_layers=2)
    narrow = small_model(n_members=2, irreps_hidden="2x0e+1x1o+1x2e", n_layers=2)
    both, own = tmp_path / "both.race.pt", tmp_path / "own.race.pt"
    export_model(narrow, both, leaders={"distilled": wide})
    export_model(wide, own)
    systems = {"bn": boron_nitride(), "b2o3": b2o3()}
    led = lammps_run.single_points(
        systems, f"{both} lead distilled", ELEMENTS, ranks=ranks, columns=ONE
    )
    alone = lammps_run.single_points(systems, f"{own}", ELEMENTS, columns=ONE)
    for system in systems:
        np.testing.assert_allclose(led[system].forces, alone[system].forces, atol=1e-9)


def test_one_member_leads_itself(lammps_run, members):
    led = lammps_run.single_point(b2o3(), f"{members['1']} lead 1", ELEMENTS, columns=ONE)
    own = lammps_run.single_point(b2o3(), f"{members['1']}", ELEMENTS, columns=ONE)
    assert led.energy == pytest.approx(own.energy, abs=1e-10)


def test_a_leader_of_other_elements_is_refused(tmp_path):
    other = small_model(n_members=1, elements=["B", "N", "C"])
    with pytest.raises(RaceError, match="leader distilled is of another elements"):
        export_model(small_model(), tmp_path / "x.race.pt", leaders={"distilled": other})
