"""Checks that labels can be right and can be learned, made once, before hours of training.

A check warns, with the numbers of the frames. It refuses if training would certainly do
silent damage; its name in `data.accept` turns the refusal into a warning.
docs/data-checks.md lists REFUSED and WARNED.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import ase
import numpy as np
from ase.data import atomic_numbers

from race.data.baseline import written_forces
from race.data.consistency import contradiction, shortest
from race.data.dataset import Dataset
from race.data.fingerprint import fingerprint
from race.data.graph import ORIGIN, Batch
from race.data.labels import FIXED
from race.data.notes import log
from race.data.pairwise import divide, other_scale, unrelated
from race.data.statistics import composition
from race.data.weights import force_weights
from race.errors import RaceError

# name -> what is looked at
REFUSED = {
    "stress-units": "stress beyond what forces and energies allow: kB, GPa, a virial",
    "stress-sign": "stress that falls as the volume grows: compression counted positive",
    "energy-forces": "energies that do not follow from the forces, of close frames of one cell or "
    "by a pair potential: gradients, another unit, the energy of an atom",
    "unrelated-forces": "forces of which a pair potential explains nothing: interchanged atoms, "
    "axes or frames",
    "huge-forces": "a force above 1e4 eV/A",
    "huge-energies": "an energy above 1e7 eV an atom, more than any nucleus binds",
    "conflicting-labels": "one structure with two labels: another charge, spin or method",
    "repeated-forces": "forces that are those of another structure, to the last digit",
    "repeated-energies": "one energy, to the last digit, of a tenth of the frames or more, whose "
    "forces differ",
    "repeated-stress": "one stress, to the last digit, of structures whose forces differ; zero",
    "validation-is-training": "a tenth or more of the validation frames are training frames",
    "no-neighbours": "no atom of the training set has a neighbour within r_max",
}
WARNED = {
    "shared-frames": "a few validation frames are training frames",
    "duplicates": "training frames that occur twice, moved, turned or renumbered ones too",
    "charges": "frames that differ in charge, spin, magnetic moments or an applied field, which no "
    "model here reads",
    "unconverged": "frames that say of themselves that they did not converge",
    "element-without-data": "an element of the model without an atom in the training set",
    "few-atoms": "an element with fewer than 10 atoms in the training set",
    "lonely-atoms": "atoms without a neighbour within r_max",
    "large-forces": "a force above 50 eV/A that is 30 times the median",
    "zero-forces": "forces of exactly 0 on some atoms of many frames: frozen atoms? Or on all "
    "atoms, where symmetry does not ask for it",
    "net-force": "forces of a frame that do not sum to zero",
    "energy-outliers": "energies far from what the composition explains",
    "energy-offsets": "energies of one file shifted against those of another, or on two levels",
    "lengths": "shortest distances that are no bond: Bohr or nm for Angstrom?",
    "missing-labels": "frames without one of the labels that are trained on",
}

GPA = 160.21766208  # in an eV/Angstrom^3
# The virial of n atoms fluctuates by about sqrt(n) times force times so many Angstrom
# (race.model.stress); more than TOO_LARGE times that is another unit.
VIRIAL_LENGTH, TOO_LARGE = 3.5, 30.0
STIFFEST = 50.0  # eV/A^3, five times diamond's largest elastic constant
HUGE_ENERGY = 1e7  # eV an atom; all electrons of oganesson bind by 1.5e6
SHARED = 0.1  # of the validation frames
SAME_PLACE = 1e-3  # Angstrom
LOPSIDED = 0.01  # of the pull of all neighbours of an atom, which a symmetric place cancels


# Keys of info that tell states of one structure apart, and what calculations say of themselves
STATE = re.compile(
    r"(?i)(total_?|net_?|tot_?)?(charge|spin|mag(netic_?)?mom(ent)?s?|multiplicity|mult|nelect|"
    r"n_?electrons)|spin_?multiplicity|(external_?|electric_?|magnetic_?|applied_?)?e?_?field"
)
CONVERGED = re.compile(r"(?i)(is_?|scf_?|electronic_?|elec_?|dft_?|qm_?)*converg(e|ed|ence)")


@dataclass
class Report:
    """Findings on a data set: `rows` of a table (name, value), and findings
    (check, text), all of them warnings or accepted.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    findings: list[tuple[str, str]] = field(default_factory=list)

    def text(self) -> str:
        """The report as lines of text."""
        width = max((len(name) for name, _ in self.rows), default=0)
        lines = [f"  {name:<{width}}  {value}" for name, value in self.rows]
        return "\n".join(lines + [f"  warning, {name}: {what}" for name, what in self.findings])


def check(
    training: Dataset,
    validation: Sequence[ase.Atoms],
    labels: Sequence[str],
    accept: Sequence[str] = (),
) -> Report:
    """Looks at frames from `read_frames`; builds (and so caches) the training graphs.

    Args:
        training: the training set, whose elements and cutoff are the model's.
        validation: frames.
        labels: those of "energy", "forces", "stress" that are trained on.
        accept: names of REFUSED whose refusal is known and wanted.

    Raises:
        RaceError: labels that cannot be right or learned, all reasons in one line.
    """
    for name in accept:
        if name not in REFUSED:
            raise RaceError(
                "no such check",
                where="data.accept",
                expected=", ".join(REFUSED),
                got=name,
            )
    report = Report(rows=list(_table(training, validation)))
    refusals = []
    for name, what in _findings(training, validation, labels):
        if name in REFUSED and name not in accept:
            refusals.append(f"{what} ({name})")
        else:
            report.findings.append((name, what))
    if refusals:
        for line in report.text().splitlines():
            log.warning("%s", line)
        raise RaceError(
            "; ".join(refusals),
            where="training data",
            remedy="mend the data, or name what you know to be right in data.accept "
            "(docs/data-checks.md)",
        )
    return report


def _table(training: Dataset, validation: Sequence[ase.Atoms]) -> Iterator[tuple[str, str]]:
    frames = training.frames
    n = len(frames)
    energy = [atoms.info["energy"] / len(atoms) for atoms in frames if "energy" in atoms.info]
    if energy:
        yield (
            "energy",
            f"{len(energy)} of {n} frames, {min(energy):.4g} to {max(energy):.4g} eV/atom",
        )
    if (norm := np.linalg.norm(_forces(frames), axis=1)).size:
        n_forces = sum("forces" in atoms.arrays for atoms in frames)
        rms = np.sqrt(np.mean(norm**2) / 3)
        yield "forces", f"{n_forces} of {n} frames, rms {rms:.3g}, largest {norm.max():.3g} eV/A"
    stress = np.array([atoms.info["stress"] for atoms in frames if "stress" in atoms.info])
    if stress.size:
        yield (
            "stress",
            f"{len(stress)} of {n} frames, rms {np.sqrt(np.mean(stress**2)) * GPA:.3g}, largest "
            f"{np.abs(stress).max() * GPA:.3g} GPa",
        )
    weights = [force_weights(atoms) for atoms in frames]
    given = [w for w in weights if (w != 1.0).any()]
    if given:
        low, high = min(w.min() for w in weights), max(w.max() for w in weights)
        yield "weights", f"{len(given)} of {n} frames, {low:.3g} to {high:.3g}"
    count = [np.diff(training.graph(k).row_ptr.numpy()) for k in range(n)]
    each = np.concatenate(count)
    yield (
        "neighbours",
        f"{each.min()} to {each.max()}, mean {each.mean():.1f}, within {training.r_max:g} A",
    )
    volume = [atoms.get_volume() / len(atoms) for atoms in frames if atoms.pbc.all()]
    n_not = len(frames) - len(volume)
    if volume:
        text = f"{min(volume):.3g} to {max(volume):.3g} A^3/atom"
        yield "volume", text + (f"; {n_not} frames not periodic in 3D" if n_not else "")
    else:
        yield "periodicity", f"none of {n} frames is periodic in 3D"


Findings = Iterator[tuple[str, str]]


def _findings(
    training: Dataset, validation: Sequence[ase.Atoms], labels: Sequence[str]
) -> Findings:
    frames = training.frames
    every = [*frames, *validation]
    yield from _copies(frames, validation, labels)
    yield from _charges(every)
    yield from _unconverged(every)
    yield from _elements(training, validation)
    yield from _missing(every, labels)
    if "forces" in labels:
        yield from _repeated_forces(every)
        yield from _force_values(every)
        halves = divide(training)
        if said := unrelated(halves):
            yield "unrelated-forces", said
    if "energy" in labels:
        yield from _repeated_energies(every)
        yield from _energies(frames, training.elements)
    if "stress" in labels:
        yield from _repeated_stress(every)
        yield from _stresses(frames)
        yield from _stresses(validation)
    if {"energy", "forces"} <= set(labels):
        if said := contradiction(frames) or other_scale(halves):
            yield "energy-forces", said
    yield from _surroundings(training)


def named(frames: Sequence[ase.Atoms], most: int = 4) -> str:
    """Where frames come from: "a.xyz, frame 3" of the first, and how many more."""
    shown = [str(atoms.info.get(ORIGIN, "frame")) for atoms in frames[:most]]
    short = [text.rsplit("/", 1)[-1] for text in shown]
    return "; ".join(short) + (f"; ... ({len(frames)} in all)" if len(frames) > most else "")


def _forces(frames: Sequence[ase.Atoms]) -> np.ndarray:
    """[n, 3] of all atoms that have one."""
    parts = [atoms.arrays["forces"] for atoms in frames if "forces" in atoms.arrays]
    rows = np.concatenate([np.zeros((0, 3)), *parts])
    return rows[np.isfinite(rows).all(axis=1)]


def _differ(a: ase.Atoms, b: ase.Atoms, labels: Sequence[str]) -> str | None:
    """How the labels of one structure differ, beyond what a repeated calculation does."""
    if "energy" in labels and "energy" in a.info and "energy" in b.info:
        difference = abs(a.info["energy"] - b.info["energy"])
        if difference > max(0.02, 2e-3 * len(a)):
            return f"energies {difference:.3g} eV apart"
    if "forces" in labels and "forces" in a.arrays and "forces" in b.arrays:
        difference = np.nanmax(np.abs(a.arrays["forces"] - b.arrays["forces"]), initial=0.0)
        if difference > 0.1:
            return f"forces {difference:.3g} eV/A apart"
    return None


def _by_labels(atoms: ase.Atoms) -> Hashable | None:
    """The same for copies of a frame that were moved, turned, wrapped or renumbered: energy and
    lengths of the forces, in steps of 1e-5. None: too little to tell structures apart.
    """
    forces = atoms.arrays.get("forces")
    if forces is None or "energy" not in atoms.info or not np.isfinite(forces).all():
        return None
    lengths = np.rint(np.sort(np.linalg.norm(forces, axis=1)) * 1e5)
    if len(np.unique(lengths[lengths > 0])) < 3:
        return None
    energy = float(np.rint(atoms.info["energy"] * 1e5))
    digest = hashlib.blake2b(lengths.tobytes(), digest_size=16).digest()
    return atoms.get_chemical_formula(), energy, digest


def _copies(
    frames: Sequence[ase.Atoms], validation: Sequence[ase.Atoms], labels: Sequence[str]
) -> Findings:
    first: dict[Hashable, ase.Atoms] = {}
    duplicates, conflicts = [], []
    for atoms in frames:
        other = first.setdefault(fingerprint(atoms), atoms)
        if other is not atoms:
            duplicates.append(atoms)
            if how := _differ(atoms, other, labels):
                conflicts.append((atoms, other, how))
        elif (key := _by_labels(atoms)) and first.setdefault(key, atoms) is not atoms:
            duplicates.append(atoms)
    shared = []
    for atoms in validation:
        known = first.get(fingerprint(atoms))
        if known is not None or _by_labels(atoms) in first:
            shared.append(atoms)
        if known is not None:
            if how := _differ(atoms, known, labels):
                conflicts.append((atoms, known, how))
    if conflicts:
        a, b, how = conflicts[0]
        yield (
            "conflicting-labels",
            f"{len(conflicts)} frames have the structure of another and other labels: "
            f"{named([b, a])}, {how}",
        )
    if duplicates:
        yield "duplicates", f"{len(duplicates)} training frames occur before: {named(duplicates)}"
    if shared:
        large = len(shared) >= SHARED * len(validation) and len(shared) > 1
        yield (
            "validation-is-training"
            if large or len(shared) == len(validation)
            else "shared-frames",
            f"{len(shared)} of {len(validation)} validation frames are training frames, so that "
            f"neither the best epoch nor the noise can be told: {named(shared)}",
        )


def _charges(frames: Sequence[ase.Atoms]) -> Findings:
    values: dict[str, set[str]] = defaultdict(set)
    for atoms in frames:
        for key, value in atoms.info.items():
            if STATE.fullmatch(key):
                values[key].add(str(value))
    for key, found in values.items():
        if len(found) > 1:
            yield (
                "charges",
                f"frames differ in {key} ({', '.join(sorted(found)[:4])}), which the model does "
                "not know",
            )


def _unconverged(frames: Sequence[ase.Atoms]) -> Findings:
    bad = [
        atoms
        for atoms in frames
        for key, value in atoms.info.items()
        if CONVERGED.fullmatch(key) and str(value).lower() in ("false", "f", "0", "no", ".false.")
    ]
    if bad:
        yield "unconverged", f"{len(bad)} frames say that they did not converge: {named(bad)}"


def _elements(training: Dataset, validation: Sequence[ase.Atoms]) -> Findings:
    counts = composition(training.frames, training.elements).sum(axis=0)
    for symbol, count in zip(training.elements, counts, strict=True):
        z = atomic_numbers[symbol]
        if count == 0:
            seen = [atoms for atoms in validation if (atoms.numbers == z).any()]
            place = f"only in validation ({named(seen)})" if seen else "in model.elements alone"
            yield (
                "element-without-data",
                f"{symbol} is {place}: its weights stay as they were drawn, and the predicted "
                "deviation does not tell",
            )
        elif count < 10:
            having = [atoms for atoms in training.frames if (atoms.numbers == z).any()]
            yield "few-atoms", f"{symbol}: {count:.0f} atoms in the training set ({named(having)})"


def _missing(frames: Sequence[ase.Atoms], labels: Sequence[str]) -> Findings:
    for label in labels:
        lacking = [
            atoms
            for atoms in frames
            if label not in (atoms.arrays if label == "forces" else atoms.info)
        ]
        if lacking:
            count = f"{len(lacking)} of {len(frames)} frames"
            yield "missing-labels", f"{label}: missing in {count} ({named(lacking)})"


def _repeated_forces(frames: Sequence[ase.Atoms]) -> Findings:
    known: dict[bytes, ase.Atoms] = {}
    repeated = []
    for atoms in frames:
        forces = atoms.arrays.get("forces")
        if forces is None or not np.isfinite(forces).all() or not np.abs(forces).max() > 1e-6:
            continue
        first = known.setdefault(forces.tobytes(), atoms)
        moved = shortest(atoms.positions - first.positions, atoms)
        # A structure that was shifted as a whole has the same forces
        if np.abs(shortest(moved - moved[0], atoms)).max() > SAME_PLACE:
            repeated.append(atoms)
    if repeated:
        yield (
            "repeated-forces",
            f"{len(repeated)} frames have the forces of another structure: {named(repeated)}",
        )


def _repeated_energies(frames: Sequence[ase.Atoms]) -> Findings:
    """The last energy of a run for all of its frames, or 0 where there was none."""
    of_value: dict[float, list[ase.Atoms]] = defaultdict(list)
    for atoms in frames:
        if "energy" in atoms.info and len(atoms) > 1:
            of_value[atoms.info["energy"]].append(atoms)
    if not of_value:
        return
    n = sum(map(len, of_value.values()))
    value, alike = max(of_value.items(), key=lambda item: len(item[1]))
    others = _otherwise(alike)
    if len(others) >= max(3, 0.1 * n):
        yield (
            "repeated-energies",
            f"{len(others)} of {n} frames have the energy {value:.10g} eV, though their forces "
            f"differ: {named(others)}",
        )


def _repeated_stress(frames: Sequence[ase.Atoms]) -> Findings:
    of_value: dict[bytes, list[ase.Atoms]] = defaultdict(list)
    for atoms in frames:
        if "stress" in atoms.info and len(atoms) > 1:
            of_value[(np.asarray(atoms.info["stress"]) + 0.0).tobytes()].append(atoms)
    for alike in of_value.values():
        others = _otherwise(alike)
        if len(others) > 1:
            what = "a stress of 0" if not alike[0].info["stress"].any() else "one stress"
            yield (
                "repeated-stress",
                f"{len(others)} frames have {what}, though their forces differ: {named(others)}; "
                "was it computed? write NaN where it was not",
            )
            return


def _otherwise(alike: Sequence[ase.Atoms]) -> list[ase.Atoms]:
    """Of frames with one label those whose forces differ in their mean square, and so are no
    images of each other; all where there are no forces.
    """
    if len(alike) < 2:
        return []
    square = [_mean_square(atoms) for atoms in alike]
    known = [size for size in square if np.isfinite(size)]
    if not known:
        structures = {fingerprint(atoms): atoms for atoms in alike}
        return [*structures.values()] if len(structures) > 1 else []
    size = {round(np.log(x + 1e-6), 1) for x in known}  # of 10 %
    return [*alike] if len(size) > 1 else []


def _mean_square(atoms: ase.Atoms) -> float:
    rows = _forces([atoms])
    return float(np.mean(rows**2)) if len(rows) else np.nan


def _force_values(frames: Sequence[ase.Atoms]) -> Findings:
    labelled = [atoms for atoms in frames if "forces" in atoms.arrays]
    if not labelled:
        return
    largest = np.array(
        [
            np.sqrt(np.nanmax((atoms.arrays["forces"] ** 2).sum(axis=1), initial=0.0))
            for atoms in labelled
        ]
    )
    median = float(np.sqrt(np.median((_forces(labelled) ** 2).sum(axis=1))))
    for name, rows in (
        ("huge-forces", largest > 1e4),
        ("large-forces", (largest > 50.0) & (largest > 30.0 * median) & (largest <= 1e4)),
    ):
        if rows.any():
            which = [labelled[k] for k in np.flatnonzero(rows)]
            size = f"{largest[rows].max():.3g} eV/A, median {median:.3g}"
            yield name, f"{rows.sum()} frames with forces to {size}: {named(which)}"
    zero, net = [], []
    for atoms in labelled:
        forces = atoms.arrays["forces"]
        written = written_forces(atoms)
        nothing = ~written.any(axis=1) & np.isfinite(written).all(axis=1)
        if (
            nothing.any()
            and not nothing.all()
            and not atoms.arrays.get(FIXED, nothing & False).any()
        ):
            zero.append(atoms)
        if len(atoms) > 1 and np.isfinite(forces).all():
            rms = np.sqrt(np.mean(forces**2))
            if np.abs(forces.sum(axis=0)).max() > 0.02 + 0.5 * rms * np.sqrt(len(atoms)):
                net.append(atoms)
    if len(zero) >= max(2, len(labelled) // 4):
        n = sum(int((~written_forces(atoms).any(axis=1)).sum()) for atoms in zero)
        yield (
            "zero-forces",
            f"{n} atoms of {len(zero)} frames have forces of exactly 0 beside others that have "
            f"not; if they were frozen, write NaN: {named(zero)}",
        )
    if net:
        yield "net-force", f"forces of {len(net)} frames do not sum to zero: {named(net)}"


def _energies(frames: Sequence[ase.Atoms], elements: Sequence[str]) -> Findings:
    huge = [a for a in frames if abs(a.info.get("energy", 0.0)) > HUGE_ENERGY * len(a)]
    if huge:
        size = max(abs(a.info["energy"]) / len(a) for a in huge)
        yield "huge-energies", f"{len(huge)} energies to {size:.3g} eV/atom: {named(huge)}"
        return
    labelled = [atoms for atoms in frames if "energy" in atoms.info and len(atoms) > 1]
    if len(labelled) < 8:
        return
    counts = composition(labelled, elements)
    n_atoms = counts.sum(axis=1)
    energy = np.array([atoms.info["energy"] for atoms in labelled]) / n_atoms
    x = counts / n_atoms[:, None]
    residual = energy - x @ np.linalg.lstsq(x, energy, rcond=1e-8)[0]
    residual -= np.median(residual)
    # The spread within each file: an offset between two files would widen a common one
    source = np.array(
        [str(atoms.info.get(ORIGIN, "")).rsplit(", frame", 1)[0] for atoms in labelled]
    )
    of_source = {name: residual[source == name] for name in np.unique(source)}
    spread = float(
        np.median(np.concatenate([np.abs(rows - np.median(rows)) for rows in of_source.values()]))
    )
    large = {name: rows for name, rows in of_source.items() if len(rows) >= 4}
    centre = {name: float(np.median(rows)) for name, rows in large.items()}
    if len(centre) > 1:
        low, high = min(centre, key=centre.__getitem__), max(centre, key=centre.__getitem__)
        offset = centre[high] - centre[low]
        if offset > max(0.05, 8.0 * spread):
            yield (
                "energy-offsets",
                f"energies of {high.rsplit('/', 1)[-1]} lie {offset:.3g} eV/atom above those of "
                f"{low.rsplit('/', 1)[-1]}, {offset / max(spread, 1e-9):.0f} times the spread: "
                "another method or reference? data.energy_offsets takes them to one level",
            )
            return
    if (levels := _two_levels(residual)) is not None:
        low_rows, high_rows, gap = levels
        which = [labelled[k] for k in min(low_rows, high_rows, key=len)]
        yield (
            "energy-offsets",
            f"energies of {len(which)} of {len(labelled)} frames lie {gap:.3g} eV/atom apart from "
            f"the others, with nothing between: another method, or the energy of an atom for that "
            f"of the frame? {named(which)}",
        )
        return
    far = np.abs(residual) > max(1.0, 20.0 * spread)
    if far.any():
        which = [labelled[k] for k in np.flatnonzero(far)]
        size = f"{np.abs(residual[far]).max():.3g} eV/atom"
        yield (
            "energy-outliers",
            f"{far.sum()} energies lie {size} from what the composition explains: {named(which)}",
        )


def _two_levels(residual: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Rows below and above a gap that is far wider than what spreads on its two sides, each of
    which is a tenth of all or more.
    """
    order = np.argsort(residual, kind="stable")
    values = residual[order]
    least = max(3, len(values) // 10)
    gaps = np.diff(values)[least - 1 : len(values) - least]
    if not len(gaps):
        return None
    cut = least + int(gaps.argmax())
    sides = values[:cut], values[cut:]
    spread = max(float(np.ptp(side)) for side in sides)
    gap = float(gaps.max())
    return (order[:cut], order[cut:], gap) if gap > max(0.3, 5.0 * spread) else None


def _stresses(frames: Sequence[ase.Atoms]) -> Findings:
    labelled = [atoms for atoms in frames if "stress" in atoms.info]
    if not labelled:
        return
    stress = np.array([atoms.info["stress"] for atoms in labelled])  # [n, 6] in SIX_ORDER
    volume = np.array([atoms.get_volume() for atoms in labelled])
    n_atoms = np.array([len(atoms) for atoms in labelled])
    pressure = stress[:, :3].mean(axis=1)
    shear = stress.copy()
    shear[:, :3] -= pressure[:, None]
    rms = float(np.sqrt(np.mean(stress**2)))
    by_forces = by_energy = 0.0
    force = np.sqrt(np.mean(_forces(labelled) ** 2)) if _forces(labelled).size else 0.0
    if force > 1e-3:
        virial = np.sqrt(np.mean((shear * volume[:, None]) ** 2))
        by_forces = virial / (VIRIAL_LENGTH * force * np.sqrt(n_atoms.mean())) / TOO_LARGE
    groups = _alike_composition(labelled)
    same = max(groups, key=len)
    energies = np.array([labelled[k].info.get("energy", np.nan) for k in same]) / n_atoms[same]
    if len(same) >= 6 and np.isfinite(energies).all() and energies.std() > 1e-9:
        work = np.mean(stress[same] ** 2) * (volume[same] / n_atoms[same]).mean()
        by_energy = work / (2.0 * energies.std()) / STIFFEST
    if by_forces > 1.0 or by_energy > 1.0 or rms > 30.0:
        yield (
            "stress-units",
            f"stress of {rms:.3g} eV/A^3 ({rms * GPA:.3g} GPa) rms is more than forces and "
            "energies allow; expected eV/A^3 (1 eV/A^3 = 160.2 GPa = 1602 kB), tension positive; "
            "give a virial in eV under a key that says virial",
        )
    # The bulk modulus of anything that holds together is positive.
    per_atom = volume[same] / n_atoms[same]
    if len(same) >= 8 and per_atom.std() > 0.005 * per_atom.mean() and pressure[same].std() > 0:
        slope = np.corrcoef(per_atom, pressure[same])[0, 1]
        if slope < -0.5:
            yield (
                "stress-sign",
                f"stress falls as the volume grows (correlation {slope:.2f} over {len(same)} "
                "frames); expected tension positive, as ASE has it; VASP's and LAMMPS's pressure "
                "has the other sign",
            )


def _alike_composition(frames: Sequence[ase.Atoms]) -> list[np.ndarray]:
    groups = defaultdict(list)
    for k, atoms in enumerate(frames):
        groups[atoms.get_chemical_formula(empirical=True)].append(k)
    return [np.array(rows) for rows in groups.values()]


def _lopsided(graph: Batch) -> bool:
    """Whether some atom has its neighbours on one side, so that no symmetry cancels its force."""
    distance = graph.edge_vector.norm(dim=1, keepdim=True)
    weight = (-distance).exp()
    pull = (graph.edge_vector / distance * weight).double().numpy()
    begins = graph.row_ptr.numpy()[:-1]
    has = np.diff(graph.row_ptr.numpy()) > 0
    sums = np.add.reduceat(np.hstack([pull, weight.double().numpy()]), begins[has])
    return bool((np.linalg.norm(sums[:, :3], axis=1) > LOPSIDED * sums[:, 3]).any())


def _surroundings(training: Dataset) -> Findings:
    lonely, shortest, still = [], [], []
    n_edges = 0
    for k, atoms in enumerate(training.frames):
        graph = training.graph(k)
        n_edges += graph.n_edges
        if len(atoms) > 1 and (np.diff(graph.row_ptr.numpy()) == 0).any():
            lonely.append(atoms)
        if graph.n_edges:
            shortest.append(float(graph.edge_vector.norm(dim=1).min()))
            if "forces" in atoms.arrays and not written_forces(atoms).any() and _lopsided(graph):
                still.append(atoms)
    if still and len(still) < len(training.frames):
        yield (
            "zero-forces",
            f"{len(still)} frames have forces of exactly 0 on all atoms, though no symmetry asks "
            f"for it; if they were not computed, write NaN: {named(still)}",
        )
    if n_edges == 0 and any(len(atoms) > 1 for atoms in training.frames):
        yield (
            "no-neighbours",
            f"no atom has a neighbour within model.r_max {training.r_max:g} A; are positions and "
            "cell in Angstrom?",
        )
    elif lonely:
        yield (
            "lonely-atoms",
            f"{len(lonely)} frames have atoms without a neighbour within {training.r_max:g} A: "
            f"{named(lonely)}",
        )
    if shortest and not 0.6 < np.median(shortest) < 4.5:
        yield (
            "lengths",
            f"the shortest distance of a frame is {np.median(shortest):.3g} A (median); are "
            "positions and cell in Angstrom?",
        )
