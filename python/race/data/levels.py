"""Energies of several levels of theory, brought to one.

Codes, functionals and pseudopotentials differ by hundreds of eV an atom in the zero of their
energies, and by little in what a potential learns. A source (a file, or the frames of one
value of an `info` key) therefore has an offset for each element, which its energies lose:

    E -> E - sum_i d[source, element of atom i]

The first source keeps its energies. A fit takes the d, and with them the E0 that all share,
from least squares of the energies per atom to the compositions. It is right as far as the
sources hold structures of like stability: what they differ by in this is taken for offset,
too.
"""

from collections.abc import Mapping, Sequence

import ase
import numpy as np

from race.data.graph import ORIGIN
from race.data.statistics import composition, elements_of
from race.data.weights import label_weights
from race.errors import RaceError

FILE = "file"  # the key that stands for the name of the file
# Columns of offsets are this small in the fit: what compositions leave open goes to the E0,
# and no offset is made up
SMALL = 1e-3

Offsets = Mapping[str, Mapping[str, float]]  # source -> element -> eV


def source_of(atoms: ase.Atoms, key: str) -> str:
    """The name of a frame's file, or info[key] of a frame from `read_frames`."""
    if key == FILE:
        return str(atoms.info[ORIGIN]).rsplit(", frame", 1)[0].rsplit("/", 1)[-1]
    return str(atoms.info.get(key, "none"))


def given_offsets(
    given: Mapping[str, float | Mapping[str, float]], frames: Sequence[ase.Atoms], key: str
) -> dict[str, dict[str, float]]:
    """By source and element, as the user gives them: one number for all elements, or one each.

    Raises:
        RaceError: a source that no frame is of, or an element of a source without an offset.
    """
    of_source: dict[str, list[ase.Atoms]] = {}
    for atoms in frames:
        of_source.setdefault(source_of(atoms, key), []).append(atoms)
    offsets = {}
    for source, values in given.items():
        if source not in of_source:
            raise RaceError(
                f"no frame is of {source}",
                where="data.energy_offsets",
                expected=", ".join(of_source),
                got=", ".join(given),
                remedy="data.source_key says what a source is",
            )
        elements = elements_of(of_source[source])
        each = values if isinstance(values, Mapping) else dict.fromkeys(elements, values)
        if missing := [symbol for symbol in elements if symbol not in each]:
            raise RaceError(
                f"{source} has no offset of {' '.join(missing)}",
                where="data.energy_offsets",
                expected=" ".join(elements),
                got=" ".join(each),
            )
        offsets[source] = {symbol: float(value) for symbol, value in each.items()}
    return offsets


def fit_offsets(
    frames: Sequence[ase.Atoms], key: str, *, mean: bool = False
) -> dict[str, dict[str, float]]:
    """By source and element, eV, against the first source; an element that this does not have
    has none. `mean`: the energies are means over atoms instead of sums.

    Raises:
        RaceError: one source alone.
    """
    labelled = [atoms for atoms in frames if "energy" in atoms.info]
    names = [source_of(atoms, key) for atoms in labelled]
    first, *others = dict.fromkeys(names)
    if not others:
        raise RaceError(
            "there is one source of energies alone",
            where="data.energy_offsets",
            expected="training frames of several",
            got=f"data.source_key {key}: {first}",
            remedy=f"set data.source_key to {FILE} or to a key of info",
        )
    elements = elements_of(labelled)
    share = composition(labelled, elements)
    n_atoms = share.sum(1)
    share /= n_atoms[:, None]
    known = share[[name == first for name in names]].any(0)
    columns: list[tuple[str | None, int]] = [(None, k) for k in range(len(elements))]
    columns += [(source, int(k)) for source in others for k in np.flatnonzero(known)]
    rows = np.zeros((len(labelled), len(columns)))
    for j, (source, k) in enumerate(columns):
        rows[:, j] = share[:, k]
        if source is not None:
            rows[[name != source for name in names], j] = 0.0
            rows[:, j] *= SMALL
    energy = np.array([atoms.info["energy"] for atoms in labelled])
    root = np.sqrt(label_weights(labelled, "energy"))
    target = root * (energy if mean else energy / n_atoms)
    solution = np.linalg.lstsq(root[:, None] * rows, target, rcond=1e-9)[0]
    offsets: dict[str, dict[str, float]] = {source: {} for source in others}
    for (source, k), value in zip(columns, solution, strict=True):
        if source is not None:
            offsets[source][elements[k]] = float(SMALL * value)
    return offsets


def offset_of(atoms: ase.Atoms, offsets: Offsets, key: str, *, mean: bool = False) -> float:
    """The offset that is subtracted from the energy of a frame, eV."""
    own = offsets.get(source_of(atoms, key), {})
    total = sum(own.get(symbol, 0.0) for symbol in atoms.symbols) if own else 0.0
    return total / len(atoms) if mean else total


def subtract_offsets(
    frames: Sequence[ase.Atoms], offsets: Offsets, key: str, *, mean: bool = False
) -> None:
    """Brings the energies of frames to the level of the first source, in place."""
    for atoms in frames:
        if "energy" in atoms.info:
            atoms.info["energy"] -= offset_of(atoms, offsets, key, mean=mean)
