"""Several pair styles, several types: sums of models, elements in more than one type,
bonded atoms.
"""

import numpy as np
import pytest
import race._race

from .conftest import ELEMENTS
from .harness import NKTV2P, read_dump, thermo, write_data
from .systems import b2o3, boron_nitride
from .trajectory import assert_right, trajectory


def other(artifacts):
    """Another model than `artifact`, of other width and depth."""
    return artifacts(
        "other",
        n_layers=2,
        r_max=2.9,
        n_members=2,
        irreps_hidden="6x0e+4x1o+2x2e",
        atomic_energies=[-1.0, 0.5, 0.2],
    )


@pytest.mark.parametrize("newton", ["on", "off"])
@pytest.mark.parametrize("read_by", ["pair_style", "pair_coeff"])
def test_two_models_add_up(lammps_run, artifact, artifacts, read_by, newton):
    """hybrid/overlay with race twice; the messages of each have their own width, and fix
    pair tells them apart.
    """
    atoms, second = b2o3(), other(artifacts)
    alone = [lammps_run.single_point(atoms, f"{model}", ELEMENTS) for model in (artifact, second)]
    if read_by == "pair_style":
        pair = (
            f"pair_style hybrid/overlay race {artifact} race {second}\npair_coeff * * race 1 B "
            "N O\npair_coeff * * race 2 B N O"
        )
    else:
        pair = (
            f"pair_style hybrid/overlay race race\npair_coeff * * race 1 {artifact} B N "
            f"O\npair_coeff * * race 2 {second} B N O"
        )
    script = f"""
    units metal
    newton {newton}
    atom_style atomic
    read_data system.data
    plugin load {lammps_run.plugin}
    {pair}
    fix one all pair 1 race:1 f_cov 1 e_std 1
    fix two all pair 1 race:2 f_cov 1 e_std 1
    compute p all pressure NULL virial
    thermo_style custom step pe vol c_p[*]
    thermo_modify format float %.17g
    dump d all custom 1 out.dump id fx fy fz f_one[*] f_two[*]
    dump_modify d sort id format float %.17g
    run 0
    """

    write_data(lammps_run.folder / "system.data", atoms, ELEMENTS)
    finished = lammps_run.run(script, 2)
    assert finished.status == 0 and not finished.hung, finished.output
    row, frame = thermo(finished.output)[0], read_dump(lammps_run.folder / "out.dump")[0]
    assert row["PotEng"] == pytest.approx(sum(s.energy for s in alone), abs=1e-9)
    np.testing.assert_allclose(
        np.stack([frame[a] for a in ("fx", "fy", "fz")], axis=1),
        sum(s.forces for s in alone),
        atol=1e-9,
    )
    virial = np.array([row[f"c_p[{k}]"] for k in range(1, 7)]) * row["Volume"] / NKTV2P
    np.testing.assert_allclose(virial, sum(s.virial for s in alone), atol=1e-9)
    for name, snapshot in zip(("one", "two"), alone, strict=True):
        cov = np.stack([frame[f"f_{name}[{k}]"] for k in range(1, 7)], axis=1)
        np.testing.assert_allclose(cov, snapshot.columns["f_cov"], atol=1e-9)
        np.testing.assert_allclose(frame[f"f_{name}[7]"], snapshot.columns["e_std"], atol=1e-9)


def test_compute_needs_one_model(lammps_run, artifact, artifacts):
    write_data(lammps_run.folder / "system.data", b2o3(), ELEMENTS)
    script = f"""
    units metal
    atom_style atomic
    read_data system.data
    plugin load {lammps_run.plugin}
    pair_style hybrid/overlay race {artifact} race {other(artifacts)}
    pair_coeff * * race 1 B N O
    pair_coeff * * race 2 B N O
    compute u all race/atom force/std
    run 0
    """
    finished = lammps_run.run(script, 2)
    assert finished.status != 0 and not finished.hung
    assert any(
        "expected one pair_style race" in line and "fix pair" in line for line in finished.errors()
    ), finished.output


def test_race_over_a_repulsive_core(lammps_run, artifact):
    """hybrid/overlay with zbl: what is left after taking zbl away is the model."""
    atoms = boron_nitride((2, 1, 1))
    core = "zbl 1.0 1.6"
    coeff = (
        "pair_coeff 1 1 zbl 5 5\npair_coeff 2 2 zbl 7 7\npair_coeff 1 2 zbl 5 7\npair_coeff 3 "
        "3 zbl 8 8\npair_coeff 1*2 3 zbl 6 8"
    )
    both = trajectory(
        lammps_run,
        artifact,
        atoms,
        "run 0",
        name="both",
        every=1,
        pair=f"pair_style hybrid/overlay race {artifact} {core}\npair_coeff * * race B N "
        f"O\n{coeff}",
    )
    model = lammps_run.single_point(atoms, f"{artifact}", ELEMENTS)
    script = (
        "units metal\natom_style atomic\nread_data both.data\npair_style "
        f"{core}\n{coeff.replace(' zbl', '')}"
    )
    script += "\nthermo_style custom step pe\nthermo_modify format float %.17g\nrun 0"

    (row,) = thermo(lammps_run.run(script).output)
    assert row["PotEng"] > 0.01 and both[0].energy == pytest.approx(
        model.energy + row["PotEng"], abs=1e-9
    )


def test_more_types_than_elements(lammps_run, artifact):
    """Types in another order than the model's elements, and two types of one element."""
    atoms = b2o3()
    types = ["O", "B", "B", "N", "O"]
    frames = trajectory(
        lammps_run,
        artifact,
        atoms,
        "set atom 1*9 type 3\nset type 1 type/fraction 5 0.5 77\nrun 0",
        types=types,
        every=1,
    )
    seen = [symbol for symbol in frames[0].atoms.symbols]
    assert seen[:2] == ["B", "B"] and seen[2] == "B" and set(seen) == {"B", "O"}
    assert_right(frames, artifact, 1)


@pytest.mark.parametrize(
    "special", ["", "special_bonds lj/coul 1 1 1", "special_bonds lj/coul 1e-50 1e-50 1e-50"]
)
def test_bonded_neighbors(lammps_run, artifact, special):
    """With bonds, LAMMPS takes bonded pairs off the neighbour list by default: refused,
    since no error would show otherwise.
    """
    atoms = boron_nitride((2, 1, 1))
    write_data(lammps_run.folder / "plain.data", atoms, ELEMENTS)
    head, rows = (lammps_run.folder / "plain.data").read_text().split("Atoms # atomic\n\n")
    head = head.replace("3 atom types", "3 atom types\n1 bonds\n1 bond types")
    rows = [row.split() for row in rows.splitlines()]
    nearest = int(np.argsort(atoms.get_distances(0, range(len(atoms)), mic=True))[1]) + 1
    bonded = "\n".join(" ".join([i, "1", t, *x]) for i, t, *x in rows)
    (lammps_run.folder / "bonded.data").write_text(
        f"{head}Atoms # bond\n\n{bonded}\n\nBonds\n\n1 1 1 {nearest}\n"
    )
    script = f"""
    units metal
    atom_style bond
    bond_style zero
    {special}
    read_data bonded.data
    bond_coeff 1
    plugin load {lammps_run.plugin}
    pair_style race {artifact}
    pair_coeff * * B N O
    thermo_style custom step pe
    thermo_modify format float %.17g
    run 0
    """

    finished = lammps_run.run(script, 2)
    assert not finished.hung
    if not special:
        assert finished.status != 0 and any(
            "special_bonds lj/coul 1 1 1" in line for line in finished.errors()
        ), finished.output
        return
    assert finished.status == 0, finished.output
    expected = lammps_run.single_point(atoms, f"{artifact}", ELEMENTS).energy
    assert thermo(finished.output)[0]["PotEng"] == pytest.approx(expected, abs=1e-9)


def bond_file(lammps_run, atoms, extra=""):
    """bonded.data of atom_style bond: one bond, between atom 1 and the nearest to it."""
    write_data(lammps_run.folder / "plain.data", atoms, ELEMENTS)
    head, rows = (lammps_run.folder / "plain.data").read_text().split("Atoms # atomic\n\n")
    head = head.replace("3 atom types", "3 atom types\n1 bonds\n1 bond types")
    rows = [row.split() for row in rows.splitlines()]
    nearest = int(np.argsort(atoms.get_distances(0, range(len(atoms)), mic=True))[1]) + 1
    bonded = "\n".join(" ".join([i, "1", t, *x]) for i, t, *x in rows)
    (lammps_run.folder / "bonded.data").write_text(
        f"{head}Atoms # bond\n\n{bonded}\n\nBonds\n\n1 1 1 {nearest}\n"
    )


DIMER = """
# two bonded atoms

2 atoms
1 bonds

Coords

1 0.0 0.0 0.0
2 1.3 0.0 0.0

Types

1 1
2 2

Bonds

1 1 1 2

Special Bond Counts

1 1 0 0
2 1 0 0

Special Bonds

1 2
2 1
"""


@pytest.mark.parametrize("special", ["", "special_bonds lj/coul 1 1 1"])
def test_bonded_neighbors_of_a_template(lammps_run, artifact, special):
    """atom_style template keeps its bonds with the molecule, not with the atoms."""
    (lammps_run.folder / "dimer.mol").write_text(DIMER)
    script = f"""
    units metal
    molecule m dimer.mol
    atom_style template m
    bond_style zero
    {special}
    region box block 0 10 0 10 0 10
    create_box 3 box bond/types 1 extra/bond/per/atom 1 extra/special/per/atom 2
    create_atoms 0 single 5 5 5 mol m 77
    bond_coeff 1
    mass 1 10.811
    mass 2 14.007
    mass 3 15.999
    plugin load {lammps_run.plugin}
    pair_style race {artifact}
    pair_coeff * * B N O
    thermo_style custom step pe fmax
    run 0
    """
    finished = lammps_run.run(script, 2)
    assert not finished.hung
    if special:
        assert finished.status == 0, finished.output
        assert thermo(finished.output)[0]["Fmax"] > 0.01
    else:
        assert finished.status != 0 and any(
            "special_bonds lj/coul 1 1 1" in line for line in finished.errors()
        ), finished.output


def test_kspace_keeps_bonded_neighbors(lammps_run, artifact):
    """With kspace, LAMMPS leaves bonded pairs on its lists: nothing to refuse."""
    atoms = boron_nitride((2, 1, 1))
    bond_file(lammps_run, atoms)
    script = f"""
    units metal
    atom_style full
    bond_style zero
    read_data full.data
    bond_coeff 1
    plugin load {lammps_run.plugin}
    pair_style hybrid/overlay race {artifact} coul/long 3.0
    pair_coeff * * race B N O
    pair_coeff * * coul/long
    kspace_style ewald 1e-4
    set group all charge 0.0
    set atom 1 charge 1e-9
    set atom 2 charge -1e-9
    thermo_style custom step pe
    thermo_modify format float %.17g
    run 0
    """
    text = (lammps_run.folder / "bonded.data").read_text()
    head, rest = text.split("Atoms # bond\n\n")
    rows, bonds = rest.split("\n\nBonds")
    rows = [row.split() for row in rows.splitlines()]
    full = "\n".join(" ".join([i, m, t, "0.0", *x]) for i, m, t, *x in rows)
    (lammps_run.folder / "full.data").write_text(f"{head}Atoms # full\n\n{full}\n\nBonds{bonds}")
    finished = lammps_run.run(script, 2)
    assert finished.status == 0 and not finished.hung, finished.output
    expected = lammps_run.single_point(atoms, f"{artifact}", ELEMENTS).energy
    assert thermo(finished.output)[0]["PotEng"] == pytest.approx(expected, abs=1e-7)


KEYWORDS = "device cpu dtype float64 uq every 2 lead mean core on memory 500 halo exchange"


@pytest.mark.parametrize("hybrid", ["hybrid", "hybrid/overlay", "hybrid/scaled"])
def test_every_keyword_under_hybrid(lammps_run, artifacts, hybrid):
    """LAMMPS cuts the arguments of hybrid at every word that is a pair style: no keyword is one."""
    model = artifacts("core", training={"min_distance": {"B-N": 1.5, "B-B": 1.5, "N-N": 1.5}})
    digest = race._race.read_artifact(str(model)).sha256
    atoms = boron_nitride((2, 1, 1))
    plain = lammps_run.single_point(atoms, f"{model} core on", ELEMENTS)
    without = lammps_run.single_point(atoms, f"{model}", ELEMENTS)
    assert abs(plain.energy - without.energy) > 0.1
    factor = "1.0 " if hybrid == "hybrid/scaled" else ""
    pair = (
        f"pair_style {hybrid} {factor}race {model} {KEYWORDS} sha256 {digest[:10]} "
        f"{factor}lj/cut 3.0\npair_coeff * * race B N O\n"
        + ("pair_coeff 3 3 lj/cut 0.0 1.0" if hybrid == "hybrid" else "pair_coeff * * lj/cut 0 1")
    )
    found = lammps_run.single_point(atoms, "", ELEMENTS, ranks=2, pair=pair)
    assert found.energy == pytest.approx(plain.energy, abs=1e-9)
    np.testing.assert_allclose(found.forces, plain.forces, atol=1e-9)
    np.testing.assert_allclose(found.columns["f_cov"], plain.columns["f_cov"], atol=1e-10)
