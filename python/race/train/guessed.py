"""A config for data that was looked at, with a comment on everything that was guessed."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np

from race.config import DEFAULT_MINUTES
from race.data.io import UNITS, raw_frames
from race.data.labels import alike
from race.errors import RaceError

LOOKED_AT = 200  # frames of each file
LABELS = ("energy", "forces", "stress")
REFERENCE = ("ref", "dft", "qm")  # how names of reference labels begin
# RMS of force components in the file's unit: molecular dynamics of molecules, liquids and
# solids gives 0.3 to 5 eV/A, which is 7 to 115 kcal/mol/A and 0.006 to 0.1 Hartree/Bohr
KCAL, HARTREE = 12.0, 0.05


def looked_at(path: Path) -> list[ase.Atoms]:
    """The readable frames among the first of a file.

    Raises:
        RaceError: there are none.
    """
    found = [atoms for _, atoms in raw_frames(path, slice(0, LOOKED_AT))]
    frames = [atoms for atoms in found if isinstance(atoms, ase.Atoms)]
    if not frames:
        raise next(
            (e for e in found if isinstance(e, RaceError)), RaceError("no frames", where=path)
        )
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


def force_unit(frames: Sequence[ase.Atoms], key: str) -> tuple[str, str]:
    """`data.units`, and the reason."""
    values = [
        np.asarray(place[key], dtype=np.float64).ravel()
        for atoms in frames
        for place in (atoms.arrays, {} if atoms.calc is None else atoms.calc.results)
        if key in place
    ]
    rms = float(np.sqrt(np.nanmean(np.concatenate(values) ** 2)))
    if rms > KCAL:
        return "kcal/mol", f"forces have an RMS of {rms:.3g}: much for eV/A"
    if rms < HARTREE:
        return "auto", f"forces have an RMS of {rms:.2g}: little for eV/A. Hartree/Bohr? Convert"
    return "auto", f"forces have an RMS of {rms:.3g}, as eV/A have"


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


def written(
    files: Sequence[Path], validation: Sequence[Path], frames: Sequence[ase.Atoms], folder: Path
) -> str:
    """The config, with paths as seen from its folder.

    Raises:
        RaceError: no energies and no forces.
    """
    keys = {label: find_key(frames, label) for label in LABELS}
    energy, forces, stress = keys.values()
    n = len(frames)
    if energy is None and forces is None:
        names = {name for a in frames[:1] for name in (*a.info, *a.arrays)}
        raise RaceError(
            "no energies and no forces",
            where=files[0],
            expected="keys with `energy` or `forces` in their names",
            got=" ".join(sorted(names - {"numbers", "positions"})) or "no keys",
            remedy="write the config by hand: `race config data` explains the keys",
        )
    elements = sorted({str(symbol) for atoms in frames for symbol in set(atoms.symbols)})
    sizes = [len(atoms) for atoms in frames]
    lines = [
        f"# {n} frames looked at: {' '.join(elements)}, {min(sizes)} to {max(sizes)} atoms.",
        "# `race config` explains every option.",
        "data:",
        f"  train: {listed(files, folder)}",
    ]
    if validation:
        lines.append(f"  validation: {listed(validation, folder)}")
    else:
        lines.append("  validation: []  # a tenth of the frames, drawn at random")
    for label, key in keys.items():
        if key is not None:
            beside = f"; beside it {' '.join(key.others)}" if key.others else ""
            lines.append(f"  {label}_key: {key.name}  # in {key.n} of {n} frames{beside}")
    units = "auto"
    if forces is not None:
        units, reason = force_unit(frames, forces.name)
        lines.append(f"  units: {units}  # {reason}")
    isolated = isolated_energies(frames, energy.name) if energy else {}
    if set(isolated) == set(elements):
        in_ev = {symbol: value * UNITS.get(units, 1.0) for symbol, value in isolated.items()}
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
