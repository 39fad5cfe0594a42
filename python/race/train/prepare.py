"""From the config a user wrote to the one a run uses: data read and split, everything left
open filled from the training set.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch

from race.config import Config, ModelConfig, ModelConstants, RunConfig
from race.data import Dataset, read_frames
from race.data.baseline import Baseline
from race.data.io import Tolerance
from race.data.levels import fit_offsets, given_offsets, subtract_offsets
from race.data.plausibility import REFUSED, Report, check
from race.data.splits import validation_split
from race.data.statistics import (
    atomic_energies,
    average_neighbors,
    elements_of,
    energy_scale,
    force_scale,
    summary,
)
from race.data.weights import CONFIG_TYPE
from race.errors import RaceError
from race.train import noise
from race.train.files import sha256

DTYPES = {"float32": torch.float32, "float64": torch.float64}

# sigma0 is the unit of the covariance heads, which reach about sigma0 / 12 to 12 sigma0.
# An untrained model errs by the RMS force, a very good one by 1 % of it; their geometric
# mean puts both ends within reach.
SIGMA0_PER_FORCE = 0.1
# Forces of an untrained model are ten to a hundred times its energies per Angstrom: with an
# energy scale of the RMS force it errs by a hundred times the forces, which the first
# epochs must unlearn (ethanol, 6000 steps: 27.3 meV/A with 1, 26.6 with this).
UNTRAINED_ENERGY = 0.05
# sigma_E = 0.1 Angstrom * sigma_F * sqrt(n_atoms) is what trained potentials show, from
# 27-atom molecules to 265-atom cells, within a factor of 3.
ENERGY_PER_SIGMA0 = 0.1  # Angstrom


@dataclass
class Prepared:
    """The config of a run, its datasets, and what run/summary.json says about the training set.

    validation: chooses the epoch; calibration: what the factors on the noise are fitted to,
    frames that chose nothing where there are enough of them.
    """

    config: RunConfig
    train: Dataset
    validation: Dataset
    calibration: Dataset
    summary: dict[str, Any]
    report: Report


# (config, frames of training and validation) -> constants
Adapt = Callable[[Config, list[ase.Atoms], list[ase.Atoms]], ModelConstants]


def prepare(config: Config, constants: ModelConstants | Adapt | None = None) -> Prepared:
    """Reads and splits the data.

    Args:
        config: what the user asks for.
        constants: of the run that is continued, or what makes them from the data; None:
            derived from the training set where the config leaves them open.

    Raises:
        RaceError: unreadable or unlabelled data, elements that the config lacks,
            stress_weight without stress labels.
    """
    data, train = config.data, config.train
    continued = isinstance(constants, ModelConstants)  # then the data was asked before
    labels = [
        name
        for name, weight in (("energy", train.energy_weight), ("forces", train.forces_weight))
        if weight > 0
    ]
    if train.stress_weight > 0:
        labels.append("stress")
    tolerance = Tolerance(data.skip_bad_frames)
    frames = _read(data.train, config, labels, tolerance)
    if data.validation:
        validation = _read(data.validation, config, labels, tolerance)
    else:
        frames, validation = validation_split(frames, data.validation_fraction, data.split_seed)
    refuse_unknown_types(data.config_weights, [*frames, *validation])
    for label in labels:
        for part, of in ((frames, "training"), (validation, "validation")):
            if not any(label in (a.arrays if label == "forces" else a.info) for a in part):
                raise RaceError(
                    f"no {label} labels in the {of} frames",
                    where=f"train.{label}_weight",
                    expected=f"0, or training and validation frames with {label}",
                    got=getattr(train, f"{label}_weight"),
                    remedy=f"set data.{label}_key, or data.split_seed if the other part has them",
                )

    dtype = DTYPES[train.dtype]
    mean = config.model.pooling == "mean"
    if isinstance(constants, ModelConstants):
        offsets = constants.energy_offsets
    elif data.energy_offsets == "fit":
        offsets = fit_offsets(frames, data.source_key, mean=mean)
    elif data.energy_offsets == "none":
        offsets = {}
    else:
        offsets = given_offsets(data.energy_offsets, [*frames, *validation], data.source_key)
    subtract_offsets([*frames, *validation], offsets, data.source_key, mean=mean)
    if callable(constants):
        constants = constants(config, frames, validation)
    elements = constants.elements if constants else config.model.elements
    elements = elements or elements_of([*frames, *validation])
    training_set = Dataset(frames, elements, config.model.r_max, dtype)
    validation_set, calibration_set = (
        Dataset(part, elements, config.model.r_max, dtype) for part in divided(validation)
    )
    report = check(training_set, validation, labels, list(REFUSED) if continued else data.accept)
    constants = constants or derive_constants(config, training_set)
    constants = constants.model_copy(
        update={"energy_offsets": offsets, "baseline": data.baseline}
    )
    for source, values in offsets.items():
        each = ", ".join(f"{symbol} {value:.6g}" for symbol, value in values.items())
        report.rows.append(("offset", f"energies of {source} lose {each} eV/atom"))
    sources = [*data.train, *data.validation]
    if isinstance(data.atomic_energies, Path):
        sources.append(data.atomic_energies)
    files = {str(path): sha256(path) for path in sources if path.is_file()}
    about = summary(frames, config.model.r_max) | {"n_validation": len(validation), "files": files}
    about |= {"findings": report.findings, "left_out": tolerance.left_out}
    resolved = RunConfig(
        **{name: getattr(config, name) for name in Config.model_fields}, constants=constants
    )
    return Prepared(resolved, training_set, validation_set, calibration_set, about, report)


def divided(validation: list[ase.Atoms]) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """Frames that choose the epoch, and frames that the noise is fitted to: alternate ones,
    where either half is enough for a fit; else all of them, twice.

    The epoch that is the best of some frames errs by less on these than on others.
    """
    if len(validation) < 2 * noise.MIN_ENERGIES:
        return validation, validation
    return validation[::2], validation[1::2]


def derive_constants(config: Config, training_set: Dataset) -> ModelConstants:
    """Neighbour count, E0, scale and sigma0: as the config gives them, else from the training
    set, in its order of elements.

    Raises:
        RaceError: they cannot be derived, or a list has not one value for each element.
    """
    data, model = config.data, config.model
    elements, frames = training_set.elements, training_set.frames
    neighbors = model.avg_num_neighbors
    if neighbors is None:
        neighbors = average_neighbors(training_set) or 1.0
    energies = model.atomic_energies
    if energies is None:
        energies = reference_energies(config, frames, elements)
    # One number for all elements: of what the user gives, where the user gives it
    scale = float(np.mean(model.scale)) if model.scale else None
    if model.sigma0 is None or scale is None:
        moving = any(atoms.arrays["forces"].any() for atoms in frames if "forces" in atoms.arrays)
        if config.train.forces_weight > 0 and moving:
            scale = force_scale(frames)
        elif scale is None:  # no forces, or all zero by symmetry as in cells of one atom
            scale = energy_scale(frames, elements, energies, pooling=model.pooling)
    assert scale is not None
    sigma0 = model.sigma0 or SIGMA0_PER_FORCE * scale
    return ModelConstants(
        elements=elements,
        avg_num_neighbors=neighbors,
        atomic_energies=energies,
        scale=model.scale or [energy_unit(model) * scale] * len(elements),
        sigma0=sigma0,
        sigma0_energy=model.sigma0_energy or ENERGY_PER_SIGMA0 * sigma0,
    )


def reference_energies(
    config: Config, frames: Sequence[ase.Atoms], elements: Sequence[str]
) -> list[float]:
    """E0 as data.atomic_energies says. Those of isolated atoms lose the baseline, as all labels do.

    Raises:
        RaceError: as `atomic_energies`.
    """
    data = config.data
    energies = atomic_energies(
        frames,
        elements,
        data.atomic_energies,
        pooling=config.model.pooling,
        units=data.units,
        energy_key=data.energy_key,
    )
    if data.baseline is None or data.atomic_energies == "least_squares":
        return energies
    baseline = Baseline(data.baseline)
    return [
        energy - baseline.of(ase.Atoms(symbol, cell=3 * [20.0])).energy
        for symbol, energy in zip(elements, energies, strict=True)
    ]


def energy_unit(model: ModelConfig) -> float:
    """On the energy scale: an untrained model errs by about the forces, not by many times
    them. The paper's layer is as it was published.
    """
    return UNTRAINED_ENERGY if model.gate or model.correlation > 1 else 1.0


def _read(
    paths: list[Path], config: Config, labels: list[str], tolerance: Tolerance
) -> list[ase.Atoms]:
    """Labelled frames of all files, without the baseline's part."""
    how = config.data.reading()
    baseline = None if config.data.baseline is None else Baseline(config.data.baseline)
    frames = []
    for path in paths:
        for atoms in read_frames(path, require=(), wanted=labels, tolerance=tolerance, **how):
            try:
                if baseline is not None:
                    baseline.subtract(atoms)
            except RaceError as error:
                tolerance.leave_out(error)
            else:
                frames.append(atoms)
    return frames


def refuse_unknown_types(weights: Mapping[str, float], frames: Sequence[ase.Atoms]) -> None:
    """Raises RaceError: data.config_weights names a config_type that no frame has."""
    known = {str(atoms.info[CONFIG_TYPE]) for atoms in frames if CONFIG_TYPE in atoms.info}
    # Frames of weight 0 have been left out
    unknown = [name for name, weight in weights.items() if weight > 0 and name not in known]
    if unknown:
        raise RaceError(
            f"no frame of config_type {unknown[0]}",
            where="data.config_weights",
            expected=", ".join(sorted(known)) or "frames with a config_type",
            got=", ".join(weights),
        )
