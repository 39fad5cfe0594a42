"""An artifact as a predictor: librace runs it, as it does for LAMMPS."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from torch import Tensor

import race._race
from race.config import BaselineOptions
from race.conventions import SIX_COLUMNS, SIX_ROWS, matrix_from_six
from race.data.graph import cell_volume, neighbors, species_index
from race.errors import RaceError
from race.heads import Capabilities
from race.predict.moments import bald, centred, joint_information, total_variance
from race.predict.neighborhood import ONE_PLACE, Neighborhood, row_pointers
from race.predict.prediction import Estimate, Prediction, concatenate
from race.predict.predictor import Predictor, Progress


@dataclass(frozen=True)
class Members:
    """librace's prediction of one structure, float64 on the CPU; M columns, or one for each
    trunk where members were not asked for.

    node_energy [n, M] eV; forces [n, M, 3] eV/A; stress [M, 6] eV/A^3 in SIX_ORDER, NaN
    without a volume. None without uncertainty: energy_var and energy_epistemic [M] eV^2,
    aleatoric and epistemic [n, 3, 3] (eV/A)^2 what the members themselves say of the energy
    and of a force, the latter averaged;
    mean_logdet [n] of their aleatoric covariances; stress_noise [6, 6]; grade [n].
    intensive: the target is the mean over atoms, not the sum; it has no forces.
    """

    node_energy: Tensor
    forces: Tensor
    stress: Tensor
    energy_var: Tensor | None = None
    aleatoric: Tensor | None = None
    epistemic: Tensor | None = None
    mean_logdet: Tensor | None = None
    stress_noise: Tensor | None = None
    grade: Tensor | None = None
    energy_epistemic: Tensor | None = None
    intensive: bool = False

    @property
    def energy(self) -> Tensor:
        """[M] eV"""
        return self.node_energy.mean(0) if self.intensive else self.node_energy.sum(0)


class ArtifactPredictor(Predictor):
    """A compiled artifact.

    Args:
        path: NAME.race.pt.
        device: cpu, cuda or cuda:N.
        dtype: "float32" or "float64"; None: as exported.
        sha256: refuse another artifact than this (8 or more leading digits).
        zbl: add the screened nuclear repulsion between close atoms.
        lead: the one member that the artifact carries by this name, instead of it; "": it.
        skin: Angstrom; above 0, `members` keeps the neighbours within r_max + skin for
            structures that differ little from the one before.

    Raises:
        RaceError: on loading, whatever would give wrong numbers.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | None = None,
        dtype: str | None = None,
        sha256: str = "",
        zbl: bool = False,
        lead: str = "",
        skin: float = 0.0,
    ):
        self.path = path
        self.model = race._race.load(str(path), device or "cpu", dtype, sha256, lead=lead)
        self.metadata: dict[str, Any] = json.loads(self.model.metadata)
        about = self.metadata.get("baseline")
        self.baseline = None if about is None else BaselineOptions(**about)
        self.zbl = race._race.Zbl(self.model, str(path)) if zbl else None
        self.gives = Capabilities(self.metadata)
        self.elements: list[str] = self.metadata["elements"]
        self.intensive = self.metadata["energy_aggregation"] == "mean"
        # c_E / c_F of a leverage (race.model.outputs)
        leverage = self.metadata["constants"].get("leverage")
        self.leverage_ratio = None if leverage is None else leverage["energy"] / leverage["forces"]
        self.skin = skin
        self._near: Neighborhood | None = None
        # Artifacts of before have none
        self.energy_spread, self.forces_spread = (
            self.metadata["calibration"].get(f"{name}_spread_factor", 1.0)
            for name in ("energy", "forces")
        )

    def predict(
        self,
        frames: Sequence[ase.Atoms],
        forces: bool = True,
        progress: Progress = lambda n: None,
        joint: bool = False,
    ) -> Prediction:
        """Predictions of structures; see `Predictor`."""
        if not frames:
            raise RaceError("no frames to predict")
        parts = []
        for atoms in frames:
            found = self.moments(self.members(atoms), joint)
            if not forces or self.intensive:
                found = Prediction(found.energy, energy_bald=found.energy_bald, grade=found.grade)
            parts.append(found)
            progress(1)
        return concatenate(parts)

    def graph(self, atoms: ase.Atoms) -> tuple[Tensor, ...]:
        """species, edge vectors, senders and row pointers of all atoms as one domain: periodic
        images fold onto their atoms, so that it needs no ghosts.
        """
        _check_positions(atoms)
        cell = np.asarray(atoms.cell.array, dtype=np.float64)
        sender, receiver, vector = neighbors(
            atoms.positions, cell, atoms.pbc, self.metadata["r_max"]
        )
        distance = np.linalg.norm(vector, axis=1)
        if distance.min(initial=np.inf) < ONE_PLACE:
            edge = distance.argmin()
            raise RaceError(
                f"atoms {receiver[edge]} and {sender[edge]} are at one place",
                got=f"{distance[edge]:.3g} A, periodic images included",
                remedy="find the step at which the run diverged",
            )
        row_ptr, species = row_pointers(receiver, len(atoms)), species_index(atoms, self.elements)
        return tuple(
            torch.from_numpy(np.ascontiguousarray(array))
            for array in (species, vector, sender, row_ptr)
        )

    def _arguments(self, atoms: ase.Atoms) -> tuple[Any, ...]:
        """What the model predicts from: a graph, or edge vectors on neighbours that are kept."""
        if not self.skin:
            return self.graph(atoms)
        if self._near is None or not self._near.holds(atoms):
            _check_positions(atoms)
            species = species_index(atoms, self.elements)
            r_max = self.metadata["r_max"]
            self._near = None  # frees before it allocates
            near = Neighborhood(self.model, atoms, species, r_max, self.skin)
            if not near.holds(atoms):  # atoms at one place, which is said there; or nearly so
                return self.graph(atoms)
            self._near = near
        return self._near.topology, self._near.vectors(atoms)

    def members(self, atoms: ase.Atoms, uncertainty: bool = True) -> Members:
        """The prediction of one structure. Without `uncertainty` members are not told apart
        where they share a trunk.

        Raises:
            RaceError: an element that the model does not know, positions that are no numbers.
        """
        out = self.model.predict(
            *self._arguments(atoms), members=uncertainty, uncertainty=uncertainty, zbl=self.zbl
        )
        volume = cell_volume(atoms)
        virial = out["virial"].double().view(-1, 3, 3)
        stress = -0.5 * (virial + virial.transpose(1, 2))[:, list(SIX_ROWS), list(SIX_COLUMNS)]
        means = (out["node_energy"].double(), out["forces"].double(), stress / volume)
        if not uncertainty:
            return Members(*means, intensive=self.intensive)
        aleatoric, epistemic = (
            torch.from_numpy(matrix_from_six(out[f"cov_{part}"].double().numpy()))
            for part in ("aleatoric", "epistemic")
        )
        node_energy_var = out["node_energy_var"].double()
        own = self._own_energy_var(node_energy_var, aleatoric, epistemic)
        return Members(
            *means,
            self._energy_var(node_energy_var if own is None else node_energy_var - own),
            aleatoric,
            epistemic,
            out["logdet_aleatoric"].double() if "logdet_aleatoric" in out else None,
            out["virial_cov"].double() / volume**2 if self.gives.stress_noise else None,
            out.get("grade"),
            None if own is None else self._energy_var(own),
            self.intensive,
        )

    def moments(self, members: Members, joint: bool = False) -> Prediction:
        """The prediction of one structure; `members` with uncertainty. joint: the joint
        information, too.
        """
        noise, own = members.energy_var, members.energy_epistemic
        energy = total_variance(
            members.energy[None],
            None if noise is None else noise.mean()[None],
            None if own is None else own.mean()[None],
            self.energy_spread,
        )
        forces = total_variance(
            members.forces, members.aleatoric, members.epistemic, self.forces_spread
        )
        stress_noise = members.stress_noise
        stress = total_variance(
            members.stress[None],
            None if stress_noise is None else stress_noise[None],
            spread=self.forces_spread,
        )
        energy_bald = forces_bald = information = None
        if noise is not None and self.gives.energy_bald:
            energy_bald = bald(energy.total, noise.log().mean()[None]).numpy()
        if members.mean_logdet is not None and self.gives.forces_bald:
            forces_bald = bald(forces.total, members.mean_logdet).numpy()
            if joint and noise is not None and members.forces.shape[1] > 1:
                information = joint_information(
                    energy,
                    centred(members.energy[None], self.energy_spread),
                    forces,
                    centred(members.forces, self.forces_spread),
                    torch.zeros(len(members.forces), dtype=torch.long),
                ).numpy()
        return Prediction(
            Estimate.of(energy),
            Estimate.of(forces),
            Estimate.of(stress),
            energy_bald,
            forces_bald,
            grade=None if members.grade is None else members.grade.numpy(),
            information=information,
        )

    def _own_energy_var(
        self, node_energy_var: Tensor, aleatoric: Tensor, epistemic: Tensor
    ) -> Tensor | None:
        """What is epistemic of the variances [n, M] of atoms' energies: librace has the sum of
        both parts, and their ratio is that of forces times c_E / c_F. None without a leverage.
        """
        if self.leverage_ratio is None:
            return None
        traces = (cov.diagonal(dim1=1, dim2=2).sum(1) for cov in (epistemic, aleatoric))
        ratio = (self.leverage_ratio * torch.div(*traces)).unsqueeze(1)
        return node_energy_var * ratio / (1 + ratio)

    def _energy_var(self, node_energy_var: Tensor) -> Tensor:
        """[n, M] -> variance of the total energy, [M] eV^2."""
        if not self.gives.energy_noise:
            return node_energy_var.new_zeros(node_energy_var.shape[1])
        if self.metadata["energy_aggregation"] == "paper":  # exp(mean_i s_i)
            return node_energy_var.mean(0).exp()
        total = node_energy_var.sum(0)
        return total / len(node_energy_var) ** 2 if self.intensive else total


def _check_positions(atoms: ase.Atoms) -> None:
    if not np.isfinite(atoms.positions).all():
        raise RaceError("a position is NaN or infinite", got=str(atoms.symbols))
