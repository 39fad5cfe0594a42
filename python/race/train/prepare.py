"""From the config a user wrote to the one a run uses: data read and split, everything left
open filled from the training set.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np

from race.config import FROM_FRAMES, Config, ModelConfig, ModelConstants, RunConfig
from race.data import Dataset
from race.data.baseline import Baseline
from race.data.plausibility import REFUSED, Report, check
from race.data.statistics import (
    atomic_energies,
    average_neighbors,
    binding_energy,
    elements_of,
    energy_scale,
    force_scale,
    is_isolated,
    isolated_energies,
    summary,
)
from race.train import noise
from race.train.reading import DTYPES, read_files, trained_labels
from race.train.shards import read_shards

# sigma0 is the unit of the covariance heads, which reach about sigma0 / 148 to 148 sigma0.
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
    labels = trained_labels(config)
    if data.shards is not None:
        read = read_shards(config, labels)
    else:
        known = constants.energy_offsets if isinstance(constants, ModelConstants) else None
        read = read_files(config, labels, known)
    frames, validation, dtype = read.frames, read.validation, DTYPES[train.dtype]
    if callable(constants):
        constants = constants(config, frames, validation)
    elements = constants.elements if constants else config.model.elements
    elements = elements or elements_of([*frames, *validation])
    training_set = Dataset(frames, elements, config.model.r_max, dtype)
    validation_set, calibration_set = (
        Dataset(part, elements, config.model.r_max, dtype) for part in divided(validation)
    )
    accept = list(REFUSED) if continued else data.accept
    report = read.report or check(training_set, validation, labels, accept)
    if constants is None:
        alone = [atoms for atoms in validation if is_isolated(atoms, config.model.r_max)]
        constants = derive_constants(config, training_set, alone)
        report.rows += [("E0", line) for line in about_reference(config, frames, constants)]
    constants = constants.model_copy(
        update={"energy_offsets": read.offsets, "baseline": data.baseline}
    )
    for source, values in read.offsets.items():
        each = ", ".join(f"{symbol} {value:.6g}" for symbol, value in values.items())
        report.rows.append(("offset", f"energies of {source} lose {each} eV/atom"))
    units = {"energy": "eV/atom", "forces": "eV/A", "stress": "eV/A^3"}
    for source, noise_of in data.label_noise.items():
        each = ", ".join(f"{label} {std:.3g} {units[label]}" for label, std in noise_of.items())
        report.rows.append(("noise", f"labels of {source}: {each}"))
    about = read.summary or summary(frames, config.model.r_max)
    about |= {"n_validation": len(validation), "files": read.files}
    about |= {"findings": report.findings, "left_out": read.left_out}
    resolved = RunConfig(
        **{name: getattr(config, name) for name in Config.model_fields}, constants=constants
    )
    return Prepared(resolved, training_set, validation_set, calibration_set, about, report)


def divided(validation: list[ase.Atoms]) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """Frames that choose the epoch, and frames that the noise is fitted to: alternate
    ones if half of them is enough for a fit, else all of them twice.

    The epoch that is the best on some frames errs by less on these than on others.
    """
    if len(validation) < 2 * noise.MIN_ENERGIES:
        return validation, validation
    return validation[::2], validation[1::2]


def about_reference(
    config: Config, frames: Sequence[ase.Atoms], constants: ModelConstants
) -> Iterator[str]:
    """Remarks on the source of the reference energies, if it is not the usual one."""
    n_isolated = sum(is_isolated(atoms, config.model.r_max) for atoms in frames)
    if has_reference(config):
        each = zip(constants.elements, constants.atomic_energies, strict=True)
        values = ", ".join(f"{symbol} {energy:.6g}" for symbol, energy in each)
        yield f"{values} eV, and {constants.energy_shift:.4g} eV/atom of binding on the mean"
    elif config.model.atomic_energies is None and n_isolated:
        yield (
            f"by least squares, of the other frames than {n_isolated} isolated atoms "
            "(data.atomic_energies: isolated takes theirs)"
        )


def has_reference(config: Config) -> bool:
    """Whether E0 are energies of atoms: not fitted to the frames, nor constants of the model that
    the user wrote for it.
    """
    data, model = config.data, config.model
    return model.atomic_energies is None and data.atomic_energies != "least_squares"


def derive_constants(
    config: Config, training_set: Dataset, alone: Sequence[ase.Atoms] = ()
) -> ModelConstants:
    """Neighbour count, E0, scale and sigma0: as the config gives them, else from the training
    set, in its order of elements; `alone`: further isolated atoms.

    Raises:
        RaceError: they cannot be derived, or a list has not one value for each element.
    """
    model = config.model
    elements, frames = training_set.elements, training_set.frames
    neighbors = model.avg_num_neighbors
    if neighbors is None:
        neighbors = average_neighbors(training_set) or 1.0
    energies = model.atomic_energies
    if energies is None:
        energies = reference_energies(config, [*frames, *alone], elements)
    shift = 0.0
    if has_reference(config):
        # The network would have to learn it, which the likelihood of energies does not make it do
        bound = [atoms for atoms in frames if not is_isolated(atoms, model.r_max)]
        shift = binding_energy(bound, elements, energies, pooling=model.pooling)
    # One number for all elements: of what the user gives, where the user gives it
    scale = float(np.mean(model.scale)) if model.scale else None
    if model.sigma0 is None or scale is None:
        moving = any(atoms.arrays["forces"].any() for atoms in frames if "forces" in atoms.arrays)
        if config.train.forces_weight > 0 and moving:
            scale = force_scale(frames)
        elif scale is None:  # no forces, or all zero by symmetry as in cells of one atom
            base = [energy + shift for energy in energies]
            scale = energy_scale(frames, elements, base, pooling=model.pooling)
    assert scale is not None
    sigma0 = model.sigma0 or SIGMA0_PER_FORCE * scale
    return ModelConstants(
        elements=elements,
        avg_num_neighbors=neighbors,
        atomic_energies=energies,
        energy_shift=shift,
        scale=model.scale or [energy_unit(model) * scale] * len(elements),
        sigma0=sigma0,
        sigma0_energy=model.sigma0_energy or ENERGY_PER_SIGMA0 * sigma0,
    )


def reference_energies(
    config: Config, frames: Sequence[ase.Atoms], elements: Sequence[str]
) -> list[float]:
    """E0 as data.atomic_energies says. Those of a file lose the baseline, as all labels do.

    Raises:
        RaceError: as `atomic_energies`.
    """
    data = config.data
    alone = [atoms for atoms in frames if is_isolated(atoms, config.model.r_max)]
    bound = [atoms for atoms in frames if not is_isolated(atoms, config.model.r_max)]
    energies = atomic_energies(
        bound or frames,
        elements,
        data.atomic_energies,
        pooling=config.model.pooling,
        units=data.units,
        energy_key=data.energy_key,
        isolated=isolated_energies(alone),
    )
    if data.baseline is None or data.atomic_energies in FROM_FRAMES:
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
