"""Labels that cannot be right or cannot be learned are said or refused, each kind planted in a
set that passes without it; docs/data-checks.md lists what is checked.
"""

from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT

from race.data import Dataset
from race.data.graph import ORIGIN
from race.data.plausibility import GPA, REFUSED, WARNED, check
from race.errors import RaceError

LABELS = ("energy", "forces", "stress")


def copper(n=16, file="a.xyz", seed=0, strained=True):
    """Strained, rattled 8-atom cells of copper with the labels of EMT, as `read_frames` gives."""
    random = np.random.RandomState(seed)
    frames = []
    for k in range(n):
        atoms = ase.build.bulk("Cu", cubic=True) * (2, 1, 1)
        strain = np.eye(3) * (1 + 0.08 * random.rand() - 0.04) + random.normal(0, 0.01, (3, 3))
        if strained:
            atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.positions += random.normal(0, 0.12, atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces, voigt = (
            atoms.get_potential_energy(),
            atoms.get_forces(),
            atoms.get_stress(),
        )
        atoms.calc = None
        atoms.info |= {"energy": energy, "stress": voigt[[0, 1, 2, 5, 4, 3]]}
        atoms.info[ORIGIN] = f"{file}, frame {k}"
        atoms.arrays["forces"] = forces
        frames.append(atoms)
    return frames


def ask(frames, validation=None, labels=LABELS, accept=(), elements=("Cu",), r_max=4.0):
    validation = copper(4, "v.xyz", seed=99) if validation is None else validation
    return check(Dataset(frames, elements, r_max, torch.float64), validation, labels, accept)


def found(report):
    return {name for name, _ in report.findings}


def test_a_sound_set_passes_in_silence():
    report = ask(copper())
    assert report.findings == []
    assert {"energy", "forces", "stress", "neighbours", "volume"} == {n for n, _ in report.rows}
    assert "16 of 16 frames, rms" in report.text()


def scale_stress(frames, factor):
    for atoms in frames:
        atoms.info["stress"] = atoms.info["stress"] * factor(atoms)


def add_copy(frames, shift):
    frames.append(frames[5].copy())
    frames[-1].info |= {"energy": frames[5].info["energy"] + shift, ORIGIN: "a.xyz, frame 16"}


PLANTED = {
    "kB": ("stress-units", lambda f: scale_stress(f, lambda a: 10 * GPA)),
    "kB of VASP": ("stress-units", lambda f: scale_stress(f, lambda a: -10 * GPA)),
    "GPa": ("stress-units", lambda f: scale_stress(f, lambda a: GPA)),
    "virial": ("stress-units", lambda f: scale_stress(f, lambda a: -a.get_volume())),
    "bar": ("stress-units", lambda f: scale_stress(f, lambda a: 1e4 * GPA)),
    "sign": ("stress-sign", lambda f: scale_stress(f, lambda a: -1.0)),
    "3e5 eV/A": ("huge-forces", lambda f: f[3].arrays["forces"].__setitem__((2, 1), 3e5)),
    "two energies": ("conflicting-labels", lambda f: add_copy(f, 2.0)),
}


@pytest.mark.parametrize("what", PLANTED)
def test_refused_unless_accepted(what):
    name, spoil = PLANTED[what]
    frames = copper()
    spoil(frames)
    with pytest.raises(RaceError, match=rf"\({name}\).*data.accept") as error:
        ask(frames)
    assert "\n" not in str(error.value)
    assert name in found(ask(frames, accept=list(REFUSED)))
    if name.startswith("stress"):
        assert not ask(frames, labels=("energy", "forces")).findings


def test_frames_are_named():
    frames = copper()
    frames[3].arrays["forces"][2, 1] = 3e5
    with pytest.raises(RaceError, match="1 frames with forces to 3e[+]05 eV/A.*a.xyz, frame 3"):
        ask(frames)


def test_validation_that_is_training():
    frames = copper()
    with pytest.raises(RaceError, match="16 of 16 validation frames are training frames"):
        ask(frames, validation=frames)
    with pytest.raises(RaceError, match="validation-is-training"):
        ask(frames, validation=[frames[0]])
    fresh = copper(18, "v.xyz", seed=5)
    with pytest.raises(RaceError, match="2 of 20 .*validation-is-training") as error:
        ask(frames, validation=[*fresh, *frames[:2]])
    assert "a.xyz, frame 0; a.xyz, frame 1" in str(error.value)
    assert found(ask(frames, validation=[*fresh, frames[0]])) == {"shared-frames"}
    accepted = ask(frames, validation=frames, accept=["validation-is-training"])
    assert found(accepted) == {"validation-is-training"}


def test_duplicates_in_training():
    frames = copper()
    add_copy(frames, 0.0)
    assert found(ask(frames)) == {"duplicates"}


@pytest.mark.parametrize("key", ["charge", "spin", "multiplicity"])
def test_other_charges(key):
    frames = copper()
    for k, atoms in enumerate(frames):
        atoms.info[key] = k % 2
    assert found(ask(frames)) == {"charges"}
    for atoms in frames:
        atoms.info[key] = 1
    assert not ask(frames).findings


def test_elements_without_data():
    frames, nickel = copper(), copper(2, "v.xyz", seed=3)
    for atoms in nickel:
        atoms.symbols[0] = "Ni"
    report = ask(frames, elements=("Cu", "Ni"))
    assert "Ni is in model.elements alone" in report.text()
    report = ask(frames, validation=nickel, elements=("Cu", "Ni"))
    assert "Ni is only in validation (v.xyz, frame 0; v.xyz, frame 1)" in report.text()
    frames[0].symbols[0] = "Ni"
    assert "few-atoms" in found(ask(frames, elements=("Cu", "Ni")))


def test_forces_of_frozen_atoms():
    frames = copper()
    for atoms in frames:
        atoms.arrays["forces"][:4] = 0.0
    report = ask(frames)
    assert "zero-forces" in found(report) and "64 atoms of 16 frames" in report.text()
    frames = copper()
    for atoms in frames:
        atoms.arrays["forces"][:4] = np.nan  # missing, as it should be written
    assert not ask(frames).findings


def test_forces_that_do_not_sum_to_zero():
    frames = copper()
    frames[2].arrays["forces"][:, 2] += 3.0
    assert found(ask(frames)) == {"net-force"}


def test_offsets_between_files_and_outliers():
    frames = copper() + copper(16, "b.xyz", seed=7)
    assert not ask(frames).findings
    for atoms in frames[16:]:
        atoms.info["energy"] += 3.0 * len(atoms)
    report = ask(frames)
    assert found(report) == {"energy-offsets"} and "energies of b.xyz lie" in report.text()
    frames = copper()
    frames[4].info["energy"] += 40.0
    report = ask(frames)
    assert found(report) == {"energy-outliers"} and "a.xyz, frame 4" in report.text()


def test_lengths_in_another_unit():
    with pytest.raises(RaceError, match="no atom has a neighbour within .*no-neighbours"):
        ask(copper(), r_max=1.2)
    frames = copper()
    for atoms in frames:
        atoms.set_cell(atoms.cell * 1.89, scale_atoms=True)  # Bohr read as Angstrom
        atoms.info.pop("stress")
    report = ask(frames, r_max=8.0, labels=("energy", "forces"))
    assert "neighbours" in report.text()
    for atoms in frames:
        atoms.set_cell(atoms.cell * 1.2, scale_atoms=True)
    assert "lengths" in found(ask(frames, r_max=8.0, labels=("energy", "forces")))


def test_lonely_atoms_and_missing_labels():
    frames = copper()
    frames[0].pbc = False
    frames[0].info.pop("stress")
    frames[0].positions[3] += 40.0
    assert {"lonely-atoms", "missing-labels"} <= found(ask(frames))


def test_missing_labels_are_counted():
    frames = copper()
    del frames[1].info["energy"], frames[2].arrays["forces"]
    report = ask(frames)
    assert found(report) == {"missing-labels"}
    assert "energy: missing in 1 of 20 frames (a.xyz, frame 1)" in report.text()
    assert "forces: missing in 1 of 20 frames (a.xyz, frame 2)" in report.text()


def test_the_documents_list_every_check():
    text = (Path(__file__).parents[2] / "docs" / "data-checks.md").read_text()
    rows = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            name, what, does = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`"), does] = what
    listed = {(name, "refuses"): what for name, what in REFUSED.items()}
    assert rows == listed | {(name, "warns"): what for name, what in WARNED.items()}


def test_energies_that_no_nucleus_has():
    """One number with a digit too many in its exponent ruins every sum."""
    frames = copper()
    frames[3].info["energy"] = 1e308
    with pytest.raises(RaceError, match=r"1 energies to 1\.25e\+307 eV/atom: a.xyz, frame 3"):
        ask(frames)


def test_one_energy_for_many():
    for value in (0.0, -3.5):
        frames = copper(20)
        for atoms in frames[:4]:
            atoms.info["energy"] = value
        with pytest.raises(RaceError, match=rf"4 of 24 frames have the energy {value:g} eV.*repea"):
            ask(frames, labels=("energy",))
    frames = copper(20)
    for atoms in frames[:2]:  # two may be chance
        atoms.info["energy"] = frames[0].info["energy"]
    assert not ask(frames, labels=("energy",)).findings
    for atoms in frames:
        del atoms.arrays["forces"]
        atoms.info["energy"] = 1.0
    with pytest.raises(RaceError, match="20 of 24 frames have the energy 1 eV"):
        ask(frames, labels=("energy",))


def test_images_of_each_other_have_one_energy():
    """Displacements that a symmetry makes each other's, as phonon calculations list them."""
    frames = []
    for k in range(6):
        atoms = ase.build.bulk("Cu", cubic=True) * (2, 2, 2)
        atoms.positions[0, k % 3] += 0.03 * (-1) ** (k // 3)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info |= {"energy": round(energy, 6), ORIGIN: f"a.xyz, frame {k}"}
        atoms.arrays["forces"] = forces
        frames.append(atoms)
    assert "repeated-energies" not in found(ask(frames, labels=("energy", "forces")))


def test_a_stress_that_was_not_computed():
    for stress in ([0.0, 0.0], [-0.0, -0.0], [0.0, -0.0], [0.01, 0.01]):
        frames = copper()
        for atoms, value in zip(frames[3:5], stress, strict=True):
            atoms.info["stress"] = np.full(6, value)
        with pytest.raises(RaceError, match=r"2 frames have .* stress.*frame 3; .*repeated-stress"):
            ask(frames)
    frames = copper()
    frames[3].info["stress"] = np.zeros(6)  # of a crystal at rest
    assert not ask(frames).findings


def test_forces_that_were_not_computed():
    frames = copper()
    frames[3].arrays["forces"][:] = 0.0
    report = ask(frames)
    assert found(report) == {"zero-forces"} and "1 frames have forces of exactly 0" in report.text()
    crystal = frames[3]
    crystal.positions = (ase.build.bulk("Cu", cubic=True) * (2, 1, 1)).positions
    crystal.cell = (ase.build.bulk("Cu", cubic=True) * (2, 1, 1)).cell
    assert not ask(frames).findings  # by symmetry


def test_two_levels_in_one_file():
    for shift in (lambda e: e + 40.0, lambda e: (e - 24000.0) / 8 + 24000.0):
        frames = copper()
        for atoms in frames[::2]:
            atoms.info["energy"] = shift(atoms.info["energy"])
        report = ask(frames, labels=("energy",))
        assert found(report) == {"energy-offsets"}
        assert "energies of 8 of 16 frames lie" in report.text()


COPIES = {
    "shifted": lambda atoms: atoms.translate([0.4, 0.3, 0.2]),
    "wrapped": lambda atoms: atoms.wrap(),
    "turned": lambda atoms: atoms.rotate(40, (1, 2, 3), rotate_cell=True),
    "a cell further": lambda atoms: atoms.translate(atoms.cell[1]),
}


@pytest.mark.parametrize("what", [*COPIES, "renumbered"])
def test_copies_in_another_guise(what):
    frames = copper()
    frames[2].positions -= 1.0
    copies = copper()[2:5]
    copies[0].positions -= 1.0
    for k, atoms in enumerate(copies):
        if what == "renumbered":
            copies[k] = atoms[::-1]
            copies[k].info = atoms.info
        else:
            forces = atoms.arrays["forces"]
            before = atoms.cell.array
            COPIES[what](atoms)
            turn = np.linalg.solve(before, atoms.cell.array)
            atoms.arrays["forces"] = forces @ turn
    assert "duplicates" in found(ask(frames + copies, labels=("energy", "forces")))
    with pytest.raises(RaceError, match="3 of 3 validation frames are training frames"):
        ask(frames, validation=copies, labels=("energy", "forces"))


@pytest.mark.parametrize("key", ["Charge", "total_spin", "magmom", "nelect", "electric_field"])
def test_other_states(key):
    frames = copper()
    for k, atoms in enumerate(frames):
        atoms.info[key] = k % 2
    assert found(ask(frames)) == {"charges"}


@pytest.mark.parametrize("key", ["converged", "scf_converged", "is_converged", "SCF_convergence"])
def test_frames_that_say_they_did_not_converge(key):
    frames = copper()
    for k, atoms in enumerate(frames):
        atoms.info[key] = ("T", "F")[k == 3]
    report = ask(frames)
    assert found(report) == {"unconverged"} and "1 frames say" in report.text()
    assert "a.xyz, frame 3" in report.text()
