"""Training that starts from another run: its model, its weights, and what of its constants
the new data changes.

The model section and the units of the weights (scale, sigma0, neighbour count) are the other
run's: weights mean nothing under others. Reference energies are not: a shift of E0 is a
shift of the energy, so those that the user gives are taken. An element that the run has not
seen gets rows of its own in every weight that has one for each species.
"""

import logging
from collections.abc import Sequence

import ase
import numpy as np
import torch
from ase.data import atomic_numbers

from race.config import OPEN, BaselineOptions, Config, ModelConstants, RunConfig
from race.data import Dataset
from race.data.statistics import composition, elements_of
from race.errors import RaceError
from race.model.race import RACE
from race.train.files import found_again
from race.train.prepare import prepare, reference_energies
from race.train.reading import DTYPES
from race.train.run import load_run

logger = logging.getLogger(__name__)

FAR = 30.0  # times the force scale: energies per atom that no potential of E0's level has


def warm_started(config: Config) -> tuple[Config, RACE | None]:
    """`config` with the model section of the run that `train.warm_start` names, and that
    run's model; None without a warm start.

    Raises:
        RaceError: no such run, or an option of the model that the user set to something else.
    """
    source = config.train.warm_start
    if source is None:
        return config, None
    model, old, _ = load_run(source)
    refuse_other_model(
        config,
        old,
        "differs from the run that train.warm_start names",
        f"leave it out: it is that of {source}",
        free=("elements", "atomic_energies"),
    )
    if config.data.baseline != old.constants.baseline:
        raise RaceError(
            "differs from the run that train.warm_start names, whose weights add to another",
            where="data.baseline",
            expected=_short(old.constants.baseline),
            got=_short(config.data.baseline),
        )
    named = config.model.elements
    if named and (lacking := [x for x in old.constants.elements if x not in named]):
        raise RaceError(
            "lacks elements of the run that train.warm_start names",
            where="model.elements",
            expected=" ".join(old.constants.elements),
            got=" ".join(named),
            remedy=f"add {' '.join(lacking)}, or leave model.elements out",
        )
    chosen = {name: getattr(config.model, name) for name in ("elements", "atomic_energies")}
    model_section = old.model.model_copy(update=chosen)
    return config.model_copy(update={"model": model_section}), model


def _short(baseline: BaselineOptions | None) -> object:
    return "none" if baseline is None else baseline.model_dump(exclude_defaults=True)


def refuse_other_model(
    config: Config, run: RunConfig, what: str, remedy: str, free: Sequence[str] = ()
) -> None:
    """Refuses an option that the user wrote into the section `model` and that is not `run`'s,
    but for those of `free`.

    Raises:
        RaceError: says `what` and `remedy`.
    """
    for key in config.model.model_fields_set.difference(free):
        given = getattr(config.model, key)
        kept = getattr(run.constants if key in OPEN else run.model, key)
        if given != kept and not (key in OPEN and given is None):
            raise RaceError(what, where=f"model.{key}", expected=kept, got=given, remedy=remedy)


def adapted(
    constants: ModelConstants,
    config: Config,
    frames: Sequence[ase.Atoms],
    validation: Sequence[ase.Atoms],
) -> ModelConstants:
    """The constants of another run for new data: with its new elements, and with the reference
    energies that the user gives.

    Args:
        constants: of the run that training starts from.
        config: the user's.
        frames: of training; reference energies are fitted to them.
        validation: its elements count too, and those that `config` names.

    Raises:
        RaceError: as `atomic_energies`.
    """
    old = constants.elements
    named = config.model.elements or []
    seen = {*named, *elements_of([*frames, *validation])}
    new = sorted(seen.difference(old), key=lambda symbol: atomic_numbers[symbol])
    elements, data = [*old, *new], config.data
    energies = dict(zip(old, constants.atomic_energies, strict=True))
    shift = constants.energy_shift
    if config.model.atomic_energies is not None:
        energies = dict(
            zip(config.model.elements or elements, config.model.atomic_energies, strict=False)
        )
    elif "atomic_energies" in data.model_fields_set:  # what the user wrote
        present = set(elements_of(frames))
        source = data.atomic_energies
        if isinstance(source, dict):
            energies |= source
        else:
            shift = 0.0 if source == "least_squares" else shift
            fitted = [symbol for symbol in elements if symbol in present]
            values = reference_energies(config, frames, fitted)
            energies |= dict(zip(fitted, values, strict=True))
    if missing := [symbol for symbol in elements if symbol not in energies]:
        base = {symbol: energy + shift for symbol, energy in energies.items()}
        fitted_base = _fitted(missing, base, frames)
        energies |= {symbol: energy - shift for symbol, energy in fitted_base.items()}
    scale = [*constants.scale, *[float(np.mean(constants.scale))] * len(new)]
    out = constants.as_trained().model_copy(
        update={
            "elements": elements,
            "atomic_energies": [float(energies[symbol]) for symbol in elements],
            "energy_shift": shift,
            "scale": scale,
        }
    )
    for symbol in new:
        logger.info(
            f"{symbol} is new to the weights: its rows start at random, E0 "
            f"{energies[symbol]:.6g} eV"
        )
    _warn_of_offset(out, frames)
    return out


def _fitted(
    symbols: Sequence[str], known: dict[str, float], frames: Sequence[ase.Atoms]
) -> dict[str, float]:
    """E0 of elements by least squares, those of the others being known."""
    labelled = [atoms for atoms in frames if np.isfinite(atoms.info.get("energy", np.nan))]
    if not labelled:
        return dict.fromkeys(symbols, 0.0)
    energy = np.array([atoms.info["energy"] for atoms in labelled])
    energy = energy - composition(labelled, [*known]) @ np.array([*known.values()])
    size = np.array([len(atoms) for atoms in labelled])
    counts = composition(labelled, symbols)
    values = np.linalg.lstsq(counts / size[:, None], energy / size, rcond=1e-8)[0]
    return dict(zip(symbols, values.tolist(), strict=True))


def _warn_of_offset(constants: ModelConstants, frames: Sequence[ase.Atoms]) -> None:
    """Labels of another level of theory, met with the reference energies of the old."""
    labelled = [atoms for atoms in frames if np.isfinite(atoms.info.get("energy", np.nan))]
    if not labelled:
        return
    size = np.array([len(atoms) for atoms in labelled])
    energy = np.array([atoms.info["energy"] for atoms in labelled])
    rest = energy - composition(labelled, constants.elements) @ np.array(constants.base_energies)
    offset = float(np.median(rest / size))
    if abs(offset) > FAR * max(constants.scale):
        logger.warning(
            f"energies are {offset:.4g} eV per atom from the reference energies E0: for labels "
            "of another level of theory give data.atomic_energies, by element or least_squares"
        )


def earlier_validation(config: RunConfig) -> tuple[Dataset, dict[str, float]] | None:
    """The validation set of the run that training started from, and that run's errors on it.
    Its energies are moved by as much as E0 was. None if the set is no longer found.
    """
    source = config.train.warm_start
    if source is None:
        return None
    try:
        _, old, about = load_run(source)
        files = about.get("training", {}).get("files", {})
        there = found_again(old, files, source)
        # Copies, which may be changed: frames of shards are read again and again
        frames = [atoms.copy() for atoms in prepare(there, old.constants).validation.frames]
    except RaceError as error:
        logger.info(f"errors on the earlier data are not known: {error}")
        return None
    new = dict(zip(config.constants.elements, config.constants.base_energies, strict=True))
    energies = zip(old.constants.elements, old.constants.base_energies, strict=True)
    shift = [new[symbol] - energy for symbol, energy in energies]
    for atoms, row in zip(frames, composition(frames, old.constants.elements), strict=True):
        if "energy" in atoms.info:
            atoms.info["energy"] += float(row @ shift)
    dtype = DTYPES[config.train.dtype]
    dataset = Dataset(frames, config.constants.elements, config.model.r_max, dtype)
    return dataset, about.get("validation", {})


def load_grown(model: RACE, old: RACE) -> None:
    """Fills the parameters of `model` with those of `old`, whose elements are its first; rows
    of other elements stay as they are.

    Raises:
        RaceError: parameters differ in more than the number of species.
    """
    n_old, n_new = len(old.constants.elements), len(model.constants.elements)
    before = dict(old.named_parameters())
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = before[name]
            axes = [k for k, (a, b) in enumerate(zip(value.shape, p.shape, strict=True)) if a != b]
            if not axes:
                p.copy_(value)
            elif len(axes) == 1 and (value.shape[axes[0]], p.shape[axes[0]]) == (n_old, n_new):
                p.narrow(axes[0], 0, n_old).copy_(value)
            else:
                raise RaceError(
                    "weights do not fit",
                    where=name,
                    expected=tuple(p.shape),
                    got=tuple(value.shape),
                )
