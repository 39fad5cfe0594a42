"""compute race/atom, compute race, fix pair and dumps: the values of the calculator, on the
steps that ask.
"""

import ase.io
import numpy as np
import pytest
import torch
from scipy.special import ndtri

import race
from race.conventions import SIX_TO_VOIGT, six_from_matrix
from race.data.graph import build_graph
from race.deploy.export import export_model

from .conftest import ELEMENTS, small_model
from .harness import NKTV2P, read_dump, thermo, write_data
from .systems import b2o3, boron_nitride

MD = """
units metal
atom_style atomic
read_data system.data
plugin load {plugin}
pair_style race {model}
pair_coeff * * {elements}
velocity all create 300 12 loop geom
timestep 0.0005
fix nve all nve
{commands}
"""
EXACT = "thermo_modify format float %.17g"


def md(run, artifact, commands, *, ranks=1, atoms=None, types=ELEMENTS, model=""):
    write_data(run.folder / "system.data", b2o3() if atoms is None else atoms, types)
    text = MD.format(
        plugin=run.plugin, model=f"{artifact} {model}", elements=" ".join(types), commands=commands
    )
    finished = run.run(text, ranks)
    assert finished.status == 0 and not finished.hung, finished.output
    return finished.output


def calculated(artifact, frame) -> dict[str, np.ndarray]:
    """The calculator's results on the positions of a dump's frame."""
    atoms = b2o3()
    atoms.positions = np.stack([frame["x"], frame["y"], frame["z"]], axis=1)
    calculator = race.Calculator(artifact, uncertainty=True)
    calculator.calculate(atoms)
    return calculator.results


def test_columns_follow_the_command_and_the_group(lammps_run, artifact):
    commands = """
    group oxygen type 3
    compute u oxygen race/atom energy/std force/epistemic force/std interval 0.9
    compute s all race/atom force/std
    compute b all race/atom bald
    dump d all custom 3 out.dump id type x y z c_u[*] c_s c_b
    dump_modify d sort id format float %.17g
    run 6
    """
    md(lammps_run, artifact, commands, ranks=2)
    frames = read_dump(lammps_run.folder / "out.dump")
    assert len(frames) == 3
    for frame in frames:
        found = calculated(artifact, frame)
        oxygen = frame["type"] == 3
        epistemic = np.stack([frame[f"c_u[{k}]"] for k in range(2, 8)], axis=1)
        interval = np.stack([frame[f"c_u[{k}]"] for k in range(9, 12)], axis=1)
        diagonal = np.diagonal(found["forces_cov"], axis1=1, axis2=2)
        assert (
            oxygen.sum() == 24
            and np.all(epistemic[~oxygen] == 0)
            and np.all(frame["c_u[1]"][~oxygen] == 0)
        )
        np.testing.assert_allclose(
            epistemic[oxygen], six_from_matrix(found["forces_cov_epistemic"])[oxygen], atol=1e-9
        )
        np.testing.assert_allclose(
            frame["c_u[8]"][oxygen], np.sqrt(diagonal.mean(1))[oxygen], atol=1e-9
        )
        np.testing.assert_allclose(frame["c_s"], np.sqrt(diagonal.mean(1)), atol=1e-9)
        np.testing.assert_allclose(frame["c_b"], found["bald"], atol=1e-9)
        assert np.ptp(found["bald"]) > 0.01
        # 1.3: calibration
        np.testing.assert_allclose(
            interval[oxygen], 1.3 * ndtri(0.95) * np.sqrt(diagonal)[oxygen], atol=1e-9
        )


def test_intervals_of_a_calibration_table(lammps_run, tmp_path):
    """compute race/atom and the calculator read the same table."""
    path = tmp_path / "x.race.pt"
    export_model(
        small_model(), path, intervals={"levels": [0.5, 0.8, 0.9], "forces": [0.9, 2.0, 3.5]}
    )
    commands = """
    compute u all race/atom interval 0.85
    dump d all custom 1 out.dump id type x y z c_u[*]
    dump_modify d sort id format float %.17g
    run 0
    """
    md(lammps_run, path, commands)
    (frame,) = read_dump(lammps_run.folder / "out.dump")
    atoms = b2o3()
    atoms.positions = np.stack([frame["x"], frame["y"], frame["z"]], axis=1)
    expected = race.Calculator(path, interval=0.85).get_property("forces_interval", atoms)
    np.testing.assert_allclose(
        np.stack([frame[f"c_u[{k}]"] for k in (1, 2, 3)], axis=1), expected, atol=1e-9
    )
    cov = calculated(path, frame)["forces_cov"]
    weight = (ndtri(0.925) - ndtri(0.9)) / (ndtri(0.95) - ndtri(0.9))
    np.testing.assert_allclose(
        expected, (2.0 + 1.5 * weight) * np.sqrt(np.diagonal(cov, axis1=1, axis2=2)), rtol=1e-9
    )


def test_global_values_in_thermo_and_halt(lammps_run, artifact):
    """A threshold on the largest force uncertainty stops the run through fix halt; both
    ranks stop.
    """
    commands = f"""
    compute U all race energy/std max/force/std
    compute s all race/atom force/std
    compute m all reduce max c_s
    thermo_style custom step pe c_U[1] c_U[2] c_m
    {EXACT}
    thermo 1
    dump d all custom 1 out.dump id type x y z
    dump_modify d sort id format float %.17g
    variable largest equal c_U[2]
    fix stop all halt 5 v_largest > 0.0 error continue
    run 20
    """
    rows = thermo(md(lammps_run, artifact, commands, ranks=2))
    frames = read_dump(lammps_run.folder / "out.dump")
    assert rows[-1]["Step"] == 5
    for row, frame in zip(rows, frames, strict=False):
        found = calculated(artifact, frame)
        assert row["c_U[1]"] == pytest.approx(found["energy_std"], abs=1e-9)
        largest = np.sqrt(np.trace(found["forces_cov"], axis1=1, axis2=2) / 3).max()
        assert row["c_U[2]"] == pytest.approx(largest, abs=1e-9) and row["c_m"] == pytest.approx(
            largest, abs=1e-9
        )


def test_fix_pair_and_uq_every(lammps_run, artifact):
    """extract_peratom gives what the compute gives; `uq every` fills it without any
    compute asking.
    """
    commands = """
    compute u all race/atom force/cov force/std energy/std bald
    fix asked all pair 3 race f_cov 1 f_std 1 e_std 1 bald 1
    fix filled all pair 3 race f_cov 0 f_std 0 e_std 0 bald 0
    dump d all custom 3 out.dump id c_u[*] f_asked[*] f_filled[*]
    dump_modify d sort id format float %.17g
    run 6
    """
    md(lammps_run, artifact, commands, model="uq every 3")
    for frame in read_dump(lammps_run.folder / "out.dump"):
        for k in range(1, 10):
            assert np.abs(frame[f"c_u[{k}]"]).max() > 0
            np.testing.assert_array_equal(frame[f"f_asked[{k}]"], frame[f"c_u[{k}]"])
            np.testing.assert_array_equal(frame[f"f_filled[{k}]"], frame[f"c_u[{k}]"])


def test_held_between_evaluations(lammps_run, artifact):
    """With `uq every 4` steps between read what step 4, 8, ... had, each atom its own,
    though atoms are sorted and change ranks.
    """
    commands = f"""
    atom_modify sort 1 2.0
    neighbor 0.3 bin
    neigh_modify every 1 delay 0 check no
    velocity all set 300 0 0 sum yes
    compute u all race/atom force/cov energy/std
    compute U all race bald max/bald energy/std
    thermo_style custom step pe c_U[*]
    {EXACT}
    thermo 1
    dump d all custom 1 out.dump id type proc x y z c_u[*]
    dump_modify d sort id format float %.17g
    run 10
    """
    rows = thermo(md(lammps_run, artifact, commands, ranks=2, model="uq every 4"))
    frames = read_dump(lammps_run.folder / "out.dump")
    assert len(frames) == 11 and any(
        np.any(frame["proc"] != frames[0]["proc"]) for frame in frames[1:4]
    )
    for step, (row, frame) in enumerate(zip(rows, frames, strict=True)):
        last = 4 * (step // 4)
        found = calculated(artifact, frames[last])
        cov = np.stack([frame[f"c_u[{k}]"] for k in range(1, 7)], axis=1)
        np.testing.assert_allclose(cov, six_from_matrix(found["forces_cov"]), atol=1e-9)
        assert row["c_U[1]"] == pytest.approx(found["bald"].mean(), abs=1e-9)
        assert row["c_U[2]"] == pytest.approx(found["bald"].max(), abs=1e-9)
        assert row["c_U[3]"] == pytest.approx(found["energy_std"], abs=1e-9)
        assert frame["c_u[7]"].tolist() == frames[last]["c_u[7]"].tolist()


def test_uncertainty_leaves_the_trajectory_alone(lammps_run, artifact):
    run = f"\n{EXACT}\nthermo 1\nrun 10"
    asked = md(
        lammps_run,
        artifact,
        f"compute U all race energy/std\nthermo_style custom step pe c_U[1] {run}",
    )
    plain = md(lammps_run, artifact, f"thermo_style custom step pe {run}")
    np.testing.assert_allclose(
        [row["PotEng"] for row in thermo(asked)],
        [row["PotEng"] for row in thermo(plain)],
        atol=1e-10,
    )


def test_ase_reads_the_dump(lammps_run, artifact):
    names = ["xx", "yy", "zz", "xy", "xz", "yz"]
    colnames = "\n".join(
        f"dump_modify d colname c_u[{k + 1}] f_cov_{name}" for k, name in enumerate(names)
    )
    commands = f"""
    compute u all race/atom force/cov
    dump d all custom 1 out.dump id type element x y z fx fy fz c_u[*]
    dump_modify d sort id element B N O format float %.12g
    {colnames}
    run 0
    """
    md(lammps_run, artifact, commands)
    atoms = ase.io.read(lammps_run.folder / "out.dump", format="lammps-dump-text")
    reference = b2o3()
    calculator = race.Calculator(artifact, uncertainty=True)
    calculator.calculate(reference)
    assert atoms.get_chemical_symbols() == reference.get_chemical_symbols()
    np.testing.assert_allclose(atoms.get_forces(), calculator.results["forces"], atol=1e-9)
    found = np.stack([atoms.arrays[f"f_cov_{name}"].ravel() for name in names], axis=1)
    np.testing.assert_allclose(found, six_from_matrix(calculator.results["forces_cov"]), atol=1e-8)


@pytest.mark.parametrize("head", ["evidential", "eip", "cholesky", "energy"])
def test_other_heads(lammps_run, artifacts, head):
    """One member: what its head alone gives."""
    single = artifacts(head, head=head, n_members=1)
    columns = "energy/std" if head == "energy" else "energy/std force/std force/aleatoric"
    commands = f"""
    compute u all race/atom {columns}
    compute U all race energy/std
    thermo_style custom step c_U
    {EXACT}
    dump d all custom 1 out.dump id type x y z c_u{"" if head == "energy" else "[*]"}
    dump_modify d sort id format float %.17g
    run 0
    """
    row = thermo(md(lammps_run, single, commands, ranks=2))[0]
    frame = read_dump(lammps_run.folder / "out.dump")[0]
    found = calculated(single, frame)
    assert row["c_U"] == pytest.approx(found["energy_std"], abs=1e-9)
    if head != "energy":
        aleatoric = np.stack([frame[f"c_u[{k}]"] for k in range(3, 9)], axis=1)
        np.testing.assert_allclose(
            aleatoric, six_from_matrix(found["forces_cov_aleatoric"]), atol=1e-9
        )
        np.testing.assert_allclose(
            frame["c_u[2]"], np.sqrt(np.trace(found["forces_cov"], axis1=1, axis2=2) / 3), atol=1e-9
        )


@pytest.mark.parametrize("n_members", [1, 3])
def test_noise_of_the_stress(lammps_run, artifacts, n_members):
    """Error bars of stress and pressure, of heads and members, on two ranks: those of the
    calculator, in bar.
    """
    path = artifacts(f"noisy{n_members}", n_members=n_members, stress_head="equivariant")
    commands = f"""
    compute U all race stress/std pressure/std
    thermo_style custom step c_U[*]
    {EXACT}
    dump d all custom 1 out.dump id type x y z
    dump_modify d sort id format float %.17g
    run 0
    """
    row = thermo(md(lammps_run, path, commands, ranks=2))[0]
    found = calculated(path, read_dump(lammps_run.folder / "out.dump")[0])
    got = np.array([row[f"c_U[{k}]"] for k in range(1, 8)]) / NKTV2P
    np.testing.assert_allclose(got[:6], found["stress_std"][list(SIX_TO_VOIGT)], rtol=1e-8)
    np.testing.assert_allclose(got[6], np.sqrt(found["stress_cov"][:3, :3].sum()) / 3, rtol=1e-8)
    # And so more than the tolerance
    assert (
        np.max(np.diagonal(found["stress_cov_aleatoric"]) / np.diagonal(found["stress_cov"])) > 1e-5
    )


def test_no_noise_of_the_stress(lammps_run, artifacts):
    """One member without a stress head has no error bar: one line says so."""
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    single = artifacts("single", n_members=1)
    commands = "compute U all race pressure/std\nthermo_style custom step c_U\nrun 0"
    text = MD.format(
        plugin=lammps_run.plugin, model=single, elements=" ".join(ELEMENTS), commands=commands
    )
    finished = lammps_run.run(text)
    assert (
        finished.status != 0
        and "head equivariant and no stress_head; expected an ensemble or a stress_head"
        in finished.errors()[0]
    )


def test_hybrid_with_null_types(lammps_run, artifact):
    """Helium among BN, of another pair style that does nothing: BN must not notice, on two
    ranks either.
    """
    alone = boron_nitride((2, 1, 1))
    mixed = alone.copy()
    mixed.extend(ase.Atoms("He4", positions=alone.positions[:4] + [0.9, 0.8, 0.7]))
    pair = (
        "pair_style hybrid race {artifact} lj/cut 3.0\npair_coeff * * race B N NULL\npair_coeff "
        "* 3 lj/cut 0.0 1.0"
    )
    expected = lammps_run.single_point(alone, f"{artifact}", ["B", "N"])
    found = lammps_run.single_point(
        mixed, "", ["B", "N", "He"], ranks=2, pair=pair.format(artifact=artifact)
    )
    np.testing.assert_allclose(found.forces[:-4], expected.forces, atol=1e-10)
    np.testing.assert_allclose(found.columns["f_cov"][:-4], expected.columns["f_cov"], atol=1e-10)
    np.testing.assert_allclose(found.virial, expected.virial, atol=1e-9)
    assert found.energy == pytest.approx(expected.energy, abs=1e-9)
    assert np.all(found.forces[-4:] == 0) and np.all(found.columns["f_cov"][-4:] == 0)


def test_two_dimensions(lammps_run, artifact):
    """A sheet: stress is a force per length, a pressure half the trace of x and y, as in compute
    pressure; z has none. The error bars are those of the members' own pressures.
    """
    sheet = boron_nitride((2, 2, 1))
    sheet = sheet[np.abs(sheet.positions[:, 2] - sheet.positions[0, 2]) < 0.5]
    sheet.positions[:, 2] = 0.0
    cell = sheet.cell.array.copy()
    cell[2] = (0, 0, 1.0)
    sheet.set_cell(cell)
    write_data(lammps_run.folder / "sheet.data", sheet, ELEMENTS)
    (lammps_run.folder / "sheet.data").write_text(
        (lammps_run.folder / "sheet.data").read_text().replace("0 1 zlo zhi", "-0.5 0.5 zlo zhi")
    )
    commands = f"""
    units metal
    dimension 2
    atom_style atomic
    read_data sheet.data
    plugin load {lammps_run.plugin}
    pair_style race {artifact}
    pair_coeff * * B N O
    compute U all race stress/std pressure/std
    compute p all pressure NULL virial
    thermo_style custom step lx ly c_U[*] c_p[*] c_p
    {EXACT}
    run 0
    """
    finished = lammps_run.run(commands, 2)
    assert finished.status == 0 and not finished.hung, finished.output
    row = thermo(finished.output)[0]
    flat = sheet.copy()
    flat.set_cell([*cell[:2], (0, 0, 30.0)])
    calculator = race.Calculator(artifact, uncertainty=True)
    calculator.calculate(flat)
    stress = calculator.results["stress_members"] * flat.get_volume() * NKTV2P
    area = row["Lx"] * row["Ly"]
    std = stress.std(0)[list(SIX_TO_VOIGT)] / area * [1, 1, 0, 1, 0, 0]
    mean = -stress.mean(0)[list(SIX_TO_VOIGT)] / area
    np.testing.assert_allclose([row[f"c_p[{k}]"] for k in (1, 2, 4)], mean[[0, 1, 3]], rtol=1e-7)
    np.testing.assert_allclose([row[f"c_U[{k}]"] for k in range(1, 7)], std, rtol=1e-7, atol=1e-7)
    assert row["c_U[7]"] == pytest.approx((stress[:, :2].sum(1) / 2 / area).std(), rel=1e-7)
    assert row["c_U[7]"] > 1 and row["c_p"] == pytest.approx(mean[:2].mean(), rel=1e-7)


def test_every_row_of_the_table(lammps_run, artifacts):
    """What the computes give of a calibrated model with every head is what the calculator gives."""
    model = artifacts("all", stress_head="equivariant", calibration={"force_std_scale": 1.3})
    names = ["energy/std", "energy/members", "energy/bald"]
    commands = f"""
    compute U all race {" ".join(names)}
    thermo_style custom step c_U[*]
    {EXACT}
    dump d all custom 1 out.dump id type x y z
    dump_modify d sort id format float %.17g
    run 0
    """
    row = thermo(md(lammps_run, model, commands, ranks=2))[0]
    found = calculated(model, read_dump(lammps_run.folder / "out.dump")[0])
    expected = [found["energy_std"], *found["energy_members"], found["energy_bald"]]
    assert len(found["energy_members"]) == 3 and np.ptp(found["energy_members"]) > 1e-3
    np.testing.assert_allclose([row[f"c_U[{k}]"] for k in range(1, 6)], expected, rtol=1e-9)


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """An artifact that knows its training set: cells like those that it is asked about."""
    frames = []
    for seed in range(20):
        frame = b2o3()
        frame.rattle(0.05, seed=seed)
        frames.append(build_graph(frame, ELEMENTS, 3.2, torch.float64))
    path = tmp_path_factory.mktemp("graded") / "x.race.pt"
    export_model(small_model(), path, training_set=frames)
    return path


@pytest.mark.parametrize("ranks", [1, 2])
def test_grade_is_the_calculators(lammps_run, graded, ranks):
    commands = f"""
    compute u all race/atom grade
    compute U all race max/grade
    thermo_style custom step c_U
    {EXACT}
    dump d all custom 1 out.dump id type x y z c_u
    dump_modify d sort id format float %.17g
    run 0
    """
    output = md(lammps_run, graded, commands, ranks=ranks)
    (frame,) = read_dump(lammps_run.folder / "out.dump")
    want = calculated(graded, frame)["grade"]
    assert want.std() > 0.01
    np.testing.assert_allclose(frame["c_u"], want, atol=1e-8)
    (row,) = thermo(output)
    assert row["c_U"] == pytest.approx(want.max(), abs=1e-8)


def test_fix_pair_has_the_grade(lammps_run, graded):
    """On its own steps, and on no others; zeros before the first."""
    commands = f"""
    fix g all pair 2 race grade 1
    fix kept all pair 1 race grade 0
    thermo_style custom step
    {EXACT}
    dump d all custom 1 out.dump id type x y z f_g f_kept
    dump_modify d sort id format float %.17g
    run 3
    """
    md(lammps_run, graded, commands, ranks=2)
    frames = read_dump(lammps_run.folder / "out.dump")
    grades = [calculated(graded, frame)["grade"] for frame in frames]
    assert np.abs(grades[2] - grades[0]).max() > 1e-5
    for k, evaluated in enumerate((0, 0, 2, 2)):
        np.testing.assert_allclose(frames[k]["f_g"], grades[evaluated], atol=1e-8)
        here = grades[k] if k == evaluated else np.zeros(len(grades[k]))
        np.testing.assert_allclose(frames[k]["f_kept"], here, atol=1e-8)


def test_a_model_without_a_grade_says_what_is_missing(lammps_run, artifact):
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    text = MD.format(
        plugin=lammps_run.plugin,
        model=artifact,
        elements=" ".join(ELEMENTS),
        commands="compute u all race/atom grade\nrun 0",
    )
    finished = lammps_run.run(text)
    assert finished.status != 0
    (line,) = finished.errors()
    assert "race/atom grade" in line and "a grade, which `race export` fits" in line
