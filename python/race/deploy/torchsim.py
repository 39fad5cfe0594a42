"""torch-sim over librace: `torch_sim.integrate(system, RaceModel("x.race.pt"), ...)`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ase
import numpy as np
import torch
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from race.deploy.calculator import ROWS, Calculator

PER_ATOM = {"forces"} | {row["property"] for row in ROWS if row["property"] and row["per_atom"]}


class RaceModel(ModelInterface):  # type: ignore[misc]
    """An artifact as a model of torch-sim: energies [n_systems] eV, forces [n_atoms, 3] eV/A and
    stress [n_systems, 3, 3] eV/A^3 of all systems of a state, and their uncertainty.

    Each system is one evaluation of the artifact, as by `race.Calculator`: systems are not
    batched. Clusters have no stress.

    Args:
        path: NAME.race.pt.
        device: cpu, cuda or cuda:N.
        dtype: of the artifact's evaluation; None: as exported. Results are float64.
        uncertainty: properties of `race.Calculator` to return beside them, e.g. "energy_std"
            [n_systems] or "forces_cov" [n_atoms, 3, 3].
        **arguments: others of `race.Calculator`, e.g. interval or zbl.

    Raises:
        RaceError: the artifact does not load, or does not give an uncertainty.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        dtype: Literal["float32", "float64"] | None = None,
        *,
        uncertainty: Sequence[str] = (),
        **arguments: Any,
    ):
        super().__init__()
        self.calculator = Calculator(path, device, dtype, **arguments)
        self.calculator.require(uncertainty)
        self.names = ["energy", "forces", *uncertainty]
        self._device, self._dtype = torch.device(device), torch.float64
        self._compute_stress = self._compute_forces = True

    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """torch-sim's interface: the quantities of all systems of a state, by name."""
        if not isinstance(state, SimState):
            state = SimState(**state, masses=torch.ones_like(state["positions"][:, 0]))
        cells, pbc = state.row_vector_cell.detach().cpu().numpy(), state.pbc
        results = []
        for k in range(state.n_systems):
            own = state.system_idx == k
            atoms = ase.Atoms(
                state.atomic_numbers[own].cpu().numpy(),
                state.positions[own].detach().cpu().numpy(),
                cell=cells[k],
                pbc=pbc.cpu().numpy() if isinstance(pbc, Tensor) else pbc,
            )
            self.calculator.calculate(atoms, self.names)
            results.append(self.calculator.results)
        # An atom's rows go by system, as torch-sim keeps its atoms
        out = {
            name: self._tensor([found[name] for found in results], name in PER_ATOM)
            for name in self.names
        }
        if all("stress" in found for found in results):
            full = [voigt_6_to_full_3x3_stress(found["stress"]) for found in results]
            out["stress"] = self._tensor(full, per_atom=False)
        return out

    def _tensor(self, values: list[Any], per_atom: bool) -> Tensor:
        array = np.concatenate(values) if per_atom else np.stack(values)
        return torch.as_tensor(array, device=self._device, dtype=self._dtype)
