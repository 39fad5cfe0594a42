"""A config for data that was looked at, with a comment on everything that was guessed."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np

from race.config import DEFAULT_MINUTES
from race.data.fingerprint import fingerprint
from race.data.graph import ORIGIN
from race.data.io import UNITS, raw_frames, shown_reading
from race.data.labels import alike
from race.errors import RaceError
from race.train.force_histogram import ForceHistogram, force_histogram

LABELS = ("energy", "forces", "stress")
REFERENCE = ("ref", "dft", "qm")  # how names of reference labels begin
# Usual force components in the file's unit: molecular dynamics of molecules, liquids and
# solids gives 0.3 to 5 eV/A, which is 7 to 115 kcal/mol/A and 0.006 to 0.1 Hartree/Bohr
KCAL, HARTREE = 12.0, 0.05


def looked_at(path: Path) -> list[ase.Atoms]:
    """The readable frames of a file.

    Raises:
        RaceError: there are none.
    """
    frames, errors = [], []
    for k, atoms in shown_reading(raw_frames(path), path):
        if isinstance(atoms, RaceError):
            errors.append(atoms)
        else:
            atoms.info[ORIGIN] = f"{path}, frame {k}"
            frames.append(atoms)
    if not frames:
        raise errors[0] if errors else RaceError("no frames", where=path)
    return frames


@dataclass(frozen=True)
class Key:
    """Under which name a label stands: in n of the frames; others: further candidates."""

    name: str
    n: int
    others: list[str]


def find_key(frames: Sequence[ase.Atoms], label: str) -> Key | None:
    """The key of most frames; of equals one that is named a reference, then the plain name."""
    count = Counter(name for atoms in frames for name in alike(atoms, label, ""))
    if not count:
        return None

    def rank(name: str) -> tuple[int, bool, bool, str]:
        is_reference = name.lower().startswith(REFERENCE)
        return -count[name], not is_reference, name != label, name

    best, *others = sorted(count, key=rank)
    return Key(best, count[best], others)


def forces_of(atoms: ase.Atoms, key: str) -> np.ndarray:
    """[n_atoms, 3] as the frame has them; NaN where it has none."""
    results = {} if atoms.calc is None else atoms.calc.results
    found = atoms.arrays.get(key, results.get(key))
    if found is None or np.size(found) != 3 * len(atoms):
        return np.full((len(atoms), 3), np.nan)
    return np.asarray(found, dtype=np.float64).reshape(-1, 3)


def force_unit(forces: Sequence[np.ndarray]) -> tuple[str, str]:
    """`data.units`, and the reason."""
    size = np.abs(np.concatenate(forces))
    # The RMS of normal numbers by their median, which few wrong forces do not change
    usual = float(np.nanmedian(size[size > 0])) / 0.6745 if (size > 0).any() else 1.0
    if usual > KCAL:
        return "kcal/mol", f"force components of {usual:.3g} are usual: much for eV/A"
    if usual < HARTREE:
        return "auto", f"force components of {usual:.2g} are usual: little for eV/A. " + (
            "Hartree/Bohr? Convert"
        )
    return "auto", f"force components of {usual:.3g} are usual, as in eV/A"


def isolated_energies(frames: Sequence[ase.Atoms], key: str) -> dict[str, float]:
    """Energies of frames of one atom, by element."""
    found = {}
    for atoms in frames:
        if len(atoms) == 1 and not atoms.pbc.any():
            results = {} if atoms.calc is None else atoms.calc.results
            energy = atoms.info.get(key, results.get(key))
            if energy is not None:
                found[str(atoms.symbols[0])] = float(energy)
    return found


@dataclass(frozen=True)
class Guess:
    """What frames seem to be.

    sizes: fewest and most atoms of a frame; duplicates: frames whose structure occurs before;
    keys: of labels; isolated: energies of frames of one atom, in the file's unit.
    """

    n_frames: int
    elements: list[str]
    sizes: tuple[int, int]
    duplicates: int
    keys: dict[str, Key | None]
    units: str
    reason: str
    isolated: dict[str, float]
    forces: ForceHistogram | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def guess(files: Sequence[Path], frames: Sequence[ase.Atoms]) -> Guess:
    """Looks at the frames of `files`.

    Raises:
        RaceError: no energies and no forces.
    """
    keys = {label: find_key(frames, label) for label in LABELS}
    energy, forces = keys["energy"], keys["forces"]
    if energy is None and forces is None:
        names = {name for a in frames[:1] for name in (*a.info, *a.arrays)}
        raise RaceError(
            "no energies and no forces",
            where=files[0],
            expected="keys with `energy` or `forces` in their names",
            got=" ".join(sorted(names - {"numbers", "positions", ORIGIN})) or "no keys",
            remedy="write the config by hand: `race config data` explains the keys",
        )
    units, reason, histogram = "auto", "", None
    if forces is not None:
        values = [forces_of(atoms, forces.name) for atoms in frames]
        units, reason = force_unit(values)
        is_kcal = units != "auto" or files[0].suffix == ".npz"  # as "auto" reads these
        factor = UNITS["kcal/mol"] if is_kcal else 1.0
        histogram = force_histogram(frames, [factor * rows for rows in values])
    with np.errstate(invalid="ignore"):  # positions that are no numbers
        duplicates = len(frames) - len({fingerprint(atoms) for atoms in frames})
    sizes = [len(atoms) for atoms in frames]
    return Guess(
        len(frames),
        sorted({str(symbol) for atoms in frames for symbol in set(atoms.symbols)}),
        (min(sizes), max(sizes)),
        duplicates,
        keys,
        units,
        reason,
        isolated_energies(frames, energy.name) if energy else {},
        histogram,
    )


def written(about: Guess, files: Sequence[Path], validation: Sequence[Path], folder: Path) -> str:
    """The config, with paths as seen from its folder."""
    n, (smallest, largest) = about.n_frames, about.sizes
    atoms = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    lines = [f"# {n} frames of {' '.join(about.elements)}, {atoms} atoms each."]
    if about.duplicates:
        lines.append(f"# {about.duplicates} frames have the structure of a frame before them.")
    if about.forces is not None:
        lines.append("# Atoms by the size of their force, eV/A; bars are logarithmic:")
        lines += [f"#   {line}" for line in about.forces.lines()]
    lines += [
        "# `race config` explains every option.",
        "data:",
        f"  train: {listed(files, folder)}",
    ]
    if validation:
        lines.append(f"  validation: {listed(validation, folder)}")
    else:
        lines.append("  validation: []  # a tenth of the frames, drawn at random")
    for label, key in about.keys.items():
        if key is not None:
            beside = f"; beside it {' '.join(key.others)}" if key.others else ""
            lines.append(f"  {label}_key: {key.name}  # in {key.n} of {n} frames{beside}")
    energy, forces, stress = (about.keys[label] for label in LABELS)
    if forces is not None:
        lines.append(f"  units: {about.units}  # {about.reason}")
    if set(about.isolated) == set(about.elements):
        factor = UNITS.get(about.units, 1.0)
        in_ev = {symbol: value * factor for symbol, value in about.isolated.items()}
        lines.append(f"  atomic_energies: {json.dumps(in_ev)}  # eV, of the frames of one atom")
    lines += ["model: medium  # small is faster, large more accurate", "train:"]
    if forces is None:
        lines += ["  loss: nll_e  # no forces", "  forces_weight: 0"]
    if energy is None:
        lines.append("  energy_weight: 0  # no energies")
    if stress is not None and 2 * stress.n >= n:
        lines.append("  stress_weight: 1")
    lines.append(f"  minutes: {DEFAULT_MINUTES:g}  # of training; `--resume` goes on with more")
    return "\n".join(lines) + "\n"


def listed(files: Sequence[Path], folder: Path) -> str:
    """Paths as a YAML list; relative to the config where they are below its folder."""
    base = folder.resolve()
    paths = [path.resolve() for path in files]
    return json.dumps([str(p.relative_to(base) if p.is_relative_to(base) else p) for p in paths])
