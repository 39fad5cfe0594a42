"""What LAMMPS users combine with a pair style: boxes that change, minimisers, load
balancing, exclusion, grand-canonical moves.
"""

import ase
import numpy as np
import pytest

from .conftest import ELEMENTS
from .harness import read_dump, thermo, write_data
from .systems import b2o3, boron_nitride, molecule, slab, tiny
from .trajectory import assert_right, trajectory

VELOCITIES = "velocity all create 600 12 loop geom\n"
NVE = f"{VELOCITIES}fix nve all nve\nrun 10"

TILED = {"setup": "comm_style tiled", "ranks": 4}

# name: (system, commands, options, frames)
CASES = {
    "npt": (b2o3, VELOCITIES + "fix npt all npt temp 600 600 0.05 iso 0 20000 0.1\nrun 10", {}, 3),
    "npt triclinic": (
        b2o3,
        VELOCITIES + "fix npt all npt temp 600 600 0.05 tri 0 20000 0.1\nrun 10",
        {},
        3,
    ),
    # fix deform changes the box after the forces of its step: what follows it is compared
    "deform": (
        b2o3,
        VELOCITIES
        + "fix nve all nve\nfix d all deform 1 x erate -8 xy erate 15 remap x\nrun 10\nunfix "
        "d\nrun 5",
        {},
        1,
    ),
    "deform and flip": (
        b2o3,
        f"{VELOCITIES}fix nve all nve\nfix d all deform 1 xy delta 5 remap x\nrun 20\nunfix d\nrun "
        "5",
        {},
        1,
    ),
    "minimize": (boron_nitride, "minimize 0 1e-3 20 60", {"every": 20}, 2),
    "fire": (boron_nitride, "min_style fire\nminimize 0 1e-3 20 60", {"every": 20}, 2),
    "box/relax": (
        boron_nitride,
        "fix r all box/relax iso 0.0 vmax 0.005\nminimize 0 1e-3 20 60",
        {"every": 20},
        2,
    ),
    "balance rcb": (
        slab,
        VELOCITIES + "fix nve all nve\nfix b all balance 2 1.0 rcb\nrun 10",
        TILED,
        3,
    ),
    "balance shift": (
        slab,
        VELOCITIES
        + "balance 1.0 shift x 10 1.01\nfix nve all nve\nfix b all balance 2 1.0 shift x 5 "
        "1.01\nrun 10",
        {"ranks": 4, "grid": "4 1 1"},
        3,
    ),
    "several images": (tiny, NVE, {"grid": "1 1 2"}, 3),
    "fixed boundaries": (molecule, NVE, {"limits": "f f f"}, 3),
    "minimal shrink-wrap": (molecule, NVE, {"limits": "m s m"}, 3),
    "sorting": (
        slab,
        "atom_modify sort 1 2.0\nneigh_modify every 1 delay 0 check no\n" + NVE,
        {},
        3,
    ),
    "respa": (
        b2o3,
        VELOCITIES + "fix nve all nve\nrun_style respa 2 2 bond 1 pair 2\nrun 10",
        {},
        3,
    ),
    "atom_style charge": (b2o3, NVE, {"style": "charge"}, 3),
}


def write_charged(path, atoms):
    write_data(path, atoms, ELEMENTS)
    head, rows = path.read_text().split("Atoms # atomic\n\n")
    rows = [row.split() for row in rows.splitlines()]
    path.write_text(
        head
        + "Atoms # charge\n\n"
        + "\n".join(" ".join([i, t, "0.3", x, y, z]) for i, t, x, y, z in rows)
        + "\n"
    )


@pytest.mark.parametrize("name", CASES)
def test_feature(lammps_run, artifact, name):
    make, commands, options, n_frames = CASES[name]
    if name == "atom_style charge":
        write_charged(lammps_run.folder / "charged.data", make())
        options = {**options, "read": "include read.charged"}
        (lammps_run.folder / "read.charged").write_text("read_data charged.data\n")
    frames = trajectory(lammps_run, artifact, make(), commands, **options)
    assert len(frames) >= n_frames
    assert_right(frames[-n_frames:], artifact, n_frames)
    assert np.abs(frames[-1].forces - frames[0].forces).max() > 1e-3
    if options.get("every"):
        assert frames[-1].energy < frames[0].energy - 1e-3  # minimised


def test_respa_is_verlet_with_its_outer_step(lammps_run, artifact):
    plain = trajectory(lammps_run, artifact, b2o3(), NVE, name="verlet")
    respa = trajectory(
        lammps_run,
        artifact,
        b2o3(),
        NVE.replace("run 10", "run_style respa 2 1 bond 1 pair 2\nrun 10"),
        name="respa",
    )
    np.testing.assert_allclose(respa[-1].atoms.positions, plain[-1].atoms.positions, atol=1e-9)


RESPA = """
units metal
atom_style atomic
read_data system.data
plugin load {plugin}
pair_style {pair}
velocity all create 600 12 loop geom
fix nve all nve
run_style {respa}
run 2
"""


@pytest.mark.parametrize(
    "respa", ["2 2 inner 1 2.0 2.5 outer 2", "3 2 2 inner 1 1.5 2.0 middle 2 2.5 3.0 outer 3"]
)
def test_respa_by_distance_is_refused(lammps_run, artifact, respa):
    """An energy of many atoms is no sum over pairs: LAMMPS learns so from the pair style."""
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    pair = f"race {artifact}\npair_coeff * * B N O"
    finished = lammps_run.run(
        RESPA.format(plugin=lammps_run.plugin, pair=pair, respa=f"respa {respa}"), 2
    )
    assert finished.status != 0 and not finished.hung
    assert any(
        "respa inner" in line.lower() or "rrespa inner" in line.lower()
        for line in finished.errors()
    ), finished.output


def test_respa_with_another_style_inside(lammps_run, artifact):
    """Under hybrid/overlay a cheap style on the inner level: at equal steps on both levels,
    plain Verlet.
    """
    core = (
        "pair_style hybrid/overlay race {artifact} zbl 1.0 1.6\npair_coeff * * race B N O\n"
        + "".join(
            f"pair_coeff {i + 1} {j + 1} zbl {z} {w}\n"
            for i, z in enumerate((5, 7, 8))
            for j, w in enumerate((5, 7, 8))
            if j >= i
        )
    )
    pair = core.format(artifact=artifact)
    plain = trajectory(lammps_run, artifact, b2o3(), NVE, name="verlet", pair=pair)
    style = "run_style respa 2 1 bond 1 hybrid 2 1\nrun 10"
    respa = trajectory(
        lammps_run, artifact, b2o3(), NVE.replace("run 10", style), name="respa", pair=pair
    )
    np.testing.assert_allclose(respa[-1].atoms.positions, plain[-1].atoms.positions, atol=1e-9)
    np.testing.assert_allclose(respa[-1].forces, plain[-1].forces, atol=1e-8)


def test_general_triclinic(lammps_run, artifact):
    """A cell in any orientation: LAMMPS turns it to its own, and turns forces back into
    the dump.
    """
    atoms = b2o3()
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T, scale_atoms=True)
    write_data(lammps_run.folder / "plain.data", atoms, ELEMENTS)
    masses = (lammps_run.folder / "plain.data").read_text().split("Masses")[1].split("Atoms")[0]
    lines = ["general", "", f"{len(atoms)} atoms", "3 atom types", ""]
    lines += [
        " ".join(f"{x:.17g}" for x in row) + f" {name}vec"
        for name, row in zip("abc", turned.cell.array, strict=True)
    ]
    lines += ["0 0 0 abc origin", "", "Masses" + masses + "Atoms # atomic", ""]
    for k, atom in enumerate(turned):
        lines.append(
            f"{k + 1} {ELEMENTS.index(atom.symbol) + 1} "
            + " ".join(f"{x:.17g}" for x in atom.position)
        )
    (lammps_run.folder / "general.data").write_text("\n".join(lines) + "\n")
    script = f"""
    units metal
    atom_style atomic
    read_data general.data
    plugin load {lammps_run.plugin}
    pair_style race {artifact}
    pair_coeff * * B N O
    thermo_style custom step pe
    thermo_modify format float %.17g
    dump d all custom 1 general.dump id fx fy fz
    dump_modify d sort id triclinic/general yes format float %.17g
    run 0
    """
    finished = lammps_run.run(script, 2)
    assert finished.status == 0 and not finished.hung, finished.output
    expected = lammps_run.single_point(atoms, f"{artifact}", ELEMENTS)
    (frame,) = read_dump(lammps_run.folder / "general.dump")
    assert thermo(finished.output)[0]["PotEng"] == pytest.approx(expected.energy, abs=1e-9)
    found = np.stack([frame["fx"], frame["fy"], frame["fz"]], axis=1)
    np.testing.assert_allclose(found, expected.forces @ rotation.T, atol=1e-9)


@pytest.mark.parametrize("rule", ["group out all", "group all out", "type"])
def test_excluded_atoms_are_not_there(lammps_run, artifact, rule):
    """Neither their pairs nor what they would have alone; but atoms excluded among
    themselves only are.
    """
    atoms = b2o3()
    out = np.arange(len(atoms)) < 5
    if rule == "type":
        out = atoms.symbols == "B"
        commands = "neigh_modify exclude type 1 1 exclude type 1 2 exclude type 1 3\nrun 0"
    else:
        commands = f"group out id 1:5\nneigh_modify exclude {rule}\nrun 0"
    (frame,) = trajectory(lammps_run, artifact, atoms, commands)
    rest = frame.atoms[~out]
    assert np.all(frame.forces[out] == 0) and np.all(frame.f_cov[out] == 0)
    frame.atoms, frame.forces, frame.f_cov = rest, frame.forces[~out], frame.f_cov[~out]
    assert_right([frame], artifact, 1)


def test_atoms_excluded_among_themselves_keep_their_energy(lammps_run, artifact):
    """Two atoms far from each other and excluded as a pair: nothing changes."""
    apart = ase.Atoms("BN", positions=[[3, 3, 3], [9, 9, 9]], cell=[12.0, 12.0, 12.0], pbc=True)
    apart += ase.Atoms("O2", positions=[[3, 3, 4.3], [9, 9, 7.6]])
    commands = "group pair id 1 2\nneigh_modify exclude group pair pair\nrun 0"
    assert_right(trajectory(lammps_run, artifact, apart, commands), artifact, 1)


@pytest.mark.parametrize(
    ("rule", "warns"),
    [
        ("group pair pair", True),
        ("group pair rest", True),
        ("type 1 2", True),
        ("group pair all", False),
        ("group none pair", False),
        ("type 1 1 exclude type 1 2 exclude type 1 3", False),
    ],
)
def test_pairs_taken_from_atoms_that_are_there_are_a_warning(lammps_run, artifact, rule, warns):
    """A rule that leaves an atom, but not its neighbours; one that removes the atom is meant."""
    groups = "group pair id 1 2\ngroup rest subtract all pair\ngroup none empty\n        "
    write_data(lammps_run.folder / "x.data", b2o3(), ELEMENTS)
    finished = lammps_run.run(
        f"""
        units metal
        read_data x.data
        plugin load {lammps_run.plugin}
        pair_style race {artifact}
        pair_coeff * * B N O
        {groups}neigh_modify exclude {rule}
        run 0
        """
    )
    assert finished.status == 0, finished.output
    assert ("takes pairs away from atoms of the model" in finished.output) == warns


MU = -7.2  # eV, at 6000 K: some insertions and some deletions are accepted
GCMC = """
group oxygen type 3
neigh_modify every 1 delay 0 check no
fix mc oxygen gcmc 1 20 10 3 29494 6000.0 {mu} 0.3 group oxygen full_energy
variable n equal count(oxygen)
thermo_style custom step pe v_n f_mc[3] f_mc[4] f_mc[5] f_mc[6]
thermo 1
run 6
"""


def test_gcmc_does_not_see_excluded_atoms(lammps_run, artifacts):
    """Raising the energy of a lone oxygen atom and its chemical potential alike changes no
    decision of fix gcmc.
    """
    shift = 1.7
    walks = {}
    for name, e0, mu in (("low", -1.0, MU), ("high", -1.0 + shift, MU + shift)):
        model = artifacts(
            f"gcmc_{name}", n_members=1, head="point", n_layers=2, atomic_energies=[-3.0, 2.0, e0]
        )
        write_data(lammps_run.folder / "gcmc.data", b2o3(n_units=4), ELEMENTS)
        script = (
            "units metal\natom_style atomic\nread_data gcmc.data\nplugin load "
            f"{lammps_run.plugin}\npair_style race {model}\n"
            f"pair_coeff * * B N O\n{GCMC.format(mu=mu)}"
        )
        finished = lammps_run.run(script, 2)
        assert finished.status == 0 and not finished.hung, finished.output
        walks[name] = thermo(finished.output)
    low, high = (
        [[row[key] for key in row if key != "PotEng"] for row in walks[name]]
        for name in ("low", "high")
    )
    assert low == high
    last = walks["low"][-1]
    # Insertions and deletions were accepted
    assert last["f_mc[4]"] > 0 and last["f_mc[6]"] > 0, last
    energies = [
        a["PotEng"] + shift * a["v_n"] - b["PotEng"]
        for a, b in zip(walks["low"], walks["high"], strict=True)
    ]
    np.testing.assert_allclose(energies, 0.0, atol=1e-4)
