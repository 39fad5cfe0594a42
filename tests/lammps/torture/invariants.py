"""What every uncertainty must obey, on random structures of random models: covariances are
positive and turn with the structure, atoms may come in any order, the total is the sum of its
parts, and domains do not matter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
import torch
from ase.neighborlist import neighbor_list

from race.deploy.export import export_model
from race.predict.artifact import ArtifactPredictor, Members
from race.predict.prediction import Prediction

from ...deploy.conftest import ELEMENTS, domains_of, make_model
from .runner import Outcome, Tally

# Parts of the covariance that do not turn with the structure
STILL = {"cholesky": ("aleatoric",), "eip": ("aleatoric", "epistemic")}
# (head, members)
MODELS = (
    ("equivariant", 3),
    ("equivariant", 1),
    ("evidential", 2),
    ("cholesky", 3),
    ("eip", 1),
    ("energy", 4),
    ("point", 5),
)
N_STRUCTURES = 200
TOLERANCE = 1e-10  # of the largest value, float64


@dataclass(frozen=True)
class Asked:
    """A structure, the model that was asked, and its answer."""

    head: str
    predictor: ArtifactPredictor
    atoms: ase.Atoms
    members: Members
    moments: Prediction
    rng: np.random.Generator


def random_structure(rng: np.random.Generator) -> ase.Atoms:
    """2 to 10 atoms in a skewed cell, no two closer than 1.2 Angstrom."""
    n = int(rng.integers(2, 11))
    while True:
        cell = np.cbrt(9.0 * n) * (np.eye(3) + rng.uniform(-0.25, 0.25, (3, 3)))
        symbols = rng.choice(ELEMENTS, n)
        atoms = ase.Atoms(symbols, scaled_positions=rng.random((n, 3)), cell=cell, pbc=True)
        for _ in range(200):
            first, second = neighbor_list("ij", atoms, 1.2)
            if not len(first):
                return atoms
            atoms.positions[first[0]] = rng.random(3) @ cell


def off(found: np.ndarray, want: np.ndarray) -> bool:
    return bool(np.abs(found - want).max() > TOLERANCE * max(1.0, np.abs(want).max()))


def compare(
    found: Prediction, want: Prediction, turn: np.ndarray, still: tuple[str, ...] = ()
) -> str:
    """Of a structure turned by `turn`, whose atoms are in the same order; `still` names the
    covariances that do not turn.
    """
    assert found.forces and want.forces
    if off(found.energy.mean, want.energy.mean) or off(found.energy.total, want.energy.total):
        return f"energy {found.energy.mean}, expected {want.energy.mean}"
    if off(found.forces.mean, want.forces.mean @ turn.T):
        return "forces differ"
    for part in ("aleatoric", "epistemic"):
        expected = turn @ getattr(want.forces, part) @ turn.T
        if part not in still and off(getattr(found.forces, part), expected):
            return f"{part} covariance differs"
    for name in ("energy_bald",) if still else ("energy_bald", "forces_bald"):
        a, b = getattr(found, name), getattr(want, name)
        if a is not None and off(a, b):
            return f"{name} differs"
    return ""


def asked_again(asked: Asked, atoms: ase.Atoms) -> Prediction:
    return asked.predictor.moments(asked.predictor.members(atoms))


def positive(asked: Asked) -> str:
    forces = asked.moments.forces
    assert forces is not None
    for name in ("aleatoric", "epistemic", "total"):
        covariance = getattr(forces, name)
        if off(covariance, covariance.transpose(0, 2, 1)):
            return f"{name} covariance is not symmetric"
        low, high = np.linalg.eigvalsh(covariance)[:, [0, 2]].T
        if (low < -TOLERANCE * np.maximum(high, 1e-12)).any():
            return f"{name} covariance has an eigenvalue {low.min():.3g}"
    noisy = asked.predictor.gives.forces and asked.head not in ("point", "energy")
    if noisy and not (np.linalg.eigvalsh(forces.total)[:, 0] > 0).all():
        return "the total covariance is singular"
    if not (asked.moments.energy.total >= 0).all():
        return "a negative variance of the energy"
    for name in ("energy_bald", "forces_bald"):
        if (bald := getattr(asked.moments, name)) is not None and (bald < -TOLERANCE).any():
            return f"{name} is negative"
    return ""


def rotation(asked: Asked) -> str:
    turn = np.linalg.qr(asked.rng.normal(size=(3, 3)))[0]  # proper or not
    turned = asked.atoms.copy()
    turned.set_cell(asked.atoms.cell.array @ turn.T)
    turned.positions = asked.atoms.positions @ turn.T + asked.rng.normal(size=3)
    found = asked_again(asked, turned)
    return compare(found, asked.moments, turn, STILL.get(asked.head, ()))


def permutation(asked: Asked) -> str:
    order = asked.rng.permutation(len(asked.atoms))
    back = np.argsort(order)
    found = asked_again(asked, asked.atoms[order])
    assert found.forces is not None
    for name in ("mean", "aleatoric", "epistemic"):
        object.__setattr__(found.forces, name, getattr(found.forces, name)[back])
    if found.forces_bald is not None:
        object.__setattr__(found, "forces_bald", found.forces_bald[back])
    return compare(found, asked.moments, np.eye(3))


def total(asked: Asked) -> str:
    """The law of total variance, written out over members."""
    members, moments = asked.members, asked.moments
    assert moments.forces is not None
    forces = members.forces.numpy()
    deviation = forces - forces.mean(1, keepdims=True)
    spread = np.einsum("nma,nmb->nab", deviation, deviation) / forces.shape[1]
    own = np.zeros_like(spread) if members.epistemic is None else members.epistemic.numpy()
    if off(moments.forces.epistemic, spread + own):
        return "the epistemic covariance is not the spread of the members"
    if off(moments.forces.total, moments.forces.aleatoric + moments.forces.epistemic):
        return "the total covariance is not the sum of its parts"
    energies = members.energy.numpy()
    noise = 0.0 if members.energy_var is None else members.energy_var.numpy().mean()
    if off(moments.energy.total, noise + energies.var()):
        return "the variance of the energy is not the sum of its parts"
    return ""


def domains(asked: Asked) -> str:
    n_domains = int(asked.rng.integers(2, 6))
    domain = asked.rng.integers(0, n_domains, len(asked.atoms))  # some may have no atom
    cut, owned = domains_of(asked.atoms, domain, n_domains)
    parts = asked.predictor.model.predict_domains(cut, members=True, uncertainty=True)
    whole = asked.predictor.model.predict(
        *asked.predictor.graph(asked.atoms), members=True, uncertainty=True
    )
    order = torch.from_numpy(np.argsort(np.concatenate(owned)))
    for name in ("node_energy", "forces", "cov_aleatoric", "cov_epistemic", "node_energy_var"):
        rows = [part[name][: len(own)] for part, own in zip(parts, owned, strict=True)]
        if off(torch.cat(rows)[order].numpy(), whole[name].numpy()):
            return f"{name} of {n_domains} domains differs"
    if off(sum(part["virial"] for part in parts).numpy(), whole["virial"].numpy()):
        return f"the virial of {n_domains} domains differs"
    return ""


CHECKS: tuple[Callable[[Asked], str], ...] = (positive, rotation, permutation, total, domains)


def predictors(folder: Path) -> list[tuple[str, ArtifactPredictor]]:
    out = []
    for k, (head, n_members) in enumerate(MODELS):
        model = make_model(
            seed=k,
            head=head,
            n_members=n_members,
            n_layers=2,
            irreps_hidden="4x0e+2x0o+3x1o+2x1e+2x2e",
            n_features=4,
            radial_mlp=[8],
            readout_hidden=8,
        )
        path = folder / f"invariants-{head}-{n_members}.race.pt"
        export_model(model, path)
        out.append((head, ArtifactPredictor(path)))
    return out


def run(
    models: list[tuple[str, ArtifactPredictor]], seed: int = 0, n_structures: int = N_STRUCTURES
) -> Tally:
    """Every check on every structure; each structure has its own seed."""
    tally = Tally("uncertainty")
    for k in range(n_structures):
        rng = np.random.default_rng([seed, k])
        head, predictor = models[k % len(models)]
        atoms = random_structure(rng)
        members = predictor.members(atoms)
        asked = Asked(head, predictor, atoms, members, predictor.moments(members), rng)
        for check in CHECKS:
            name = f"{check.__name__} of structure {k} ({head}, {atoms.symbols})"
            tally.count(name, Outcome(energy=float(asked.moments.energy.mean[0])), check(asked))
    return tally
