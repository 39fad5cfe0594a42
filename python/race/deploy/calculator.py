"""ASE calculator over librace: `atoms.calc = race.Calculator("x.race.pt")`."""

import json
import warnings
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Literal

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes

import race._race
from race.conventions import SIX_TO_VOIGT, matrix_from_six
from race.data.graph import neighbors, species_index
from race.errors import RaceError

Results = dict[str, float | np.ndarray]
MEAN = ["energy", "free_energy", "energies", "forces", "stress"]
# Beside the mean; asking for any one computes them all, in one pass over the members.
MEMBERS = ["energy_members", "forces_members", "stress_members"]
INTERVALS = {"energy_interval": "energy", "forces_interval": "forces", "stress_interval": "stress"}
UNCERTAINTY = [
    *INTERVALS,
    "energy_std",
    "forces_cov",
    "forces_cov_aleatoric",
    "forces_cov_epistemic",
    "bald",
    "energy_bald",
    "stress_std",
    "stress_cov",
    "stress_cov_aleatoric",
    "stress_cov_epistemic",
    *MEMBERS,
]


class Calculator(AseCalculator):
    """Energies, forces and stress of an artifact, with their uncertainty.

    Beside ASE's own properties, `atoms.calc.get_property(name, atoms)` gives ::

        energy_std            eV, total: aleatoric and spread of the members
        forces_cov            [n_atoms, 3, 3] (eV/A)^2, total = forces_cov_aleatoric +
                              forces_cov_epistemic
        bald                  [n_atoms] nats, 1/2 ln det(forces_cov) - mean_m 1/2 ln
                              det(aleatoric covariance of member m): what the force would
                              tell about which member is right (Houlsby et al. 2011,
                              arXiv:1112.5745)
        energy_bald           nats, the same of the total energy: 1/2 ln(energy_std^2) -
                              mean_m 1/2 ln(aleatoric variance of member m)
        stress_std            [6] eV/A^3, ASE's Voigt order; total: the members' spread,
                              and the noise of a model with a stress_head
        stress_cov            [6, 6] (eV/A^3)^2 in Voigt order, total =
                              stress_cov_aleatoric (stress_head) + stress_cov_epistemic
        energy_interval eV, forces_interval [n_atoms, 3] eV/A, stress_interval [6] eV/A^3
                              in Voigt order: half-widths of the calibrated central
                              intervals that hold the true value with probability
                              `interval`, component by component
        energy_members [M] eV, forces_members [n_atoms, M, 3] eV/A, stress_members [M, 6]
        eV/A^3 in Voigt order.

    A property that the artifact cannot give (one member, a head without covariance,
    stress without 3D periodicity) raises ASE's PropertyNotImplementedError. Plain
    energies and forces do not pay for the members' forces.

    Args:
        path: NAME.race.pt.
        device: cpu, cuda or cuda:N.
        dtype: "float32" or "float64"; None: as exported.
        uncertainty: compute every property at every call, for code that reads them all.
        interval: level of the calibrated intervals, e.g. 0.95; the artifact must carry a
            calibration (`race export --calibration`).
        zbl: add the screened nuclear repulsion of Ziegler, Biersack and Littmark between
            atoms closer than any of their elements in the training set
            (`cpp/include/race/zbl.h`, the `zbl on` of LAMMPS). Uncertainties stay those
            of the model. A structure with two elements that are no pair of the training
            set, and so have no core, is a warning.
        sha256: refuse another artifact than this (8 or more leading digits).

    Raises:
        RaceError: on loading, whatever would give wrong numbers; later, an element that
            the model does not know.
    """

    implemented_properties: list[str] = [*MEAN, *UNCERTAINTY]

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        dtype: Literal["float32", "float64"] | None = None,
        *,
        uncertainty: bool = False,
        interval: float | None = None,
        zbl: bool = False,
        sha256: str = "",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.path = path
        self.model = race._race.load(str(path), device, dtype, sha256)
        self.metadata = json.loads(self.model.metadata)
        self.zbl = race._race.Zbl(self.model, str(path)) if zbl else None
        self.always_uncertain = uncertainty
        ensemble = self.metadata["n_members"] > 1
        energy_var, forces_cov = (
            self.metadata["head"] != "point",
            self.metadata["head"] not in ("point", "energy"),
        )
        stress_noise = self.metadata["stress_head"] != "none"
        available = {
            "energy_std": ensemble or energy_var,
            "forces_cov": ensemble or forces_cov,
            "forces_cov_aleatoric": forces_cov,
            "forces_cov_epistemic": ensemble or self.metadata["head"] == "evidential",
            "bald": forces_cov and (ensemble or self.metadata["head"] == "evidential"),
            "energy_bald": ensemble and energy_var,
            "stress_std": ensemble or stress_noise,
            "stress_cov": ensemble or stress_noise,
            "stress_cov_aleatoric": stress_noise,
            "stress_cov_epistemic": ensemble,
        }
        # By quantity, in units of its predicted standard deviation.
        self.interval_factors = {} if interval is None else self._interval_factors(path, interval)
        available |= {
            name: quantity in self.interval_factors for name, quantity in INTERVALS.items()
        }
        self.uncertainty_properties = [name for name in UNCERTAINTY if available.get(name, True)]
        self.implemented_properties = [*MEAN, *self.uncertainty_properties]

    def calculate(
        self, atoms: ase.Atoms | None = None, properties=("energy",), system_changes=all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None  # ASE has just set it
        self.results = self._predict(
            self.atoms, self.always_uncertain or any(name in UNCERTAINTY for name in properties)
        )

    def _predict(self, atoms: ase.Atoms, uncertain: bool) -> Results:
        out = self._run(atoms, uncertain)
        energy_members = out["node_energy"].sum(0)
        energy = float(energy_members.mean())
        results: Results = {
            "energy": energy,
            "free_energy": energy,
            "energies": out["node_energy"].mean(1),
            "forces": out["forces"].mean(1),
        }
        if uncertain:
            results |= self._energy_uncertainty(out, energy_members) | self._forces_uncertainty(out)
        if atoms.pbc.all():
            results |= self._stress(out, atoms.get_volume(), uncertain)
        if uncertain:
            results |= self._intervals(results)
        return {
            name: value for name, value in results.items() if name in self.implemented_properties
        }

    def _run(self, atoms: ase.Atoms, uncertain: bool) -> dict[str, np.ndarray]:
        """What librace gives for all atoms as one domain: periodic images fold onto their
        atoms, so that it needs no ghosts.
        """
        if not np.isfinite(atoms.positions).all():
            raise RaceError("a position is NaN or infinite", got=str(atoms.symbols))
        cell = np.asarray(atoms.cell.array, dtype=np.float64)
        sender, receiver, vector = neighbors(
            atoms.positions, cell, atoms.pbc, self.metadata["r_max"]
        )
        row_ptr = np.zeros(len(atoms) + 1, dtype=np.int64)
        np.cumsum(np.bincount(receiver, minlength=len(atoms)), out=row_ptr[1:])
        species = species_index(atoms, self.metadata["elements"])
        if self.zbl is not None:
            self._warn_without_core(self.zbl, species)
        arrays = (
            torch.from_numpy(np.ascontiguousarray(array))
            for array in (species, vector, sender, row_ptr)
        )
        out = self.model.predict(*arrays, members=uncertain, uncertainty=uncertain, zbl=self.zbl)
        return {name: tensor.numpy() for name, tensor in out.items()}

    def _energy_uncertainty(
        self, out: dict[str, np.ndarray], energy_members: np.ndarray
    ) -> Results:
        energy_var = self._energy_var(out["node_energy_var"])  # [M]
        total_var = energy_var.mean() + energy_members.var()
        results: Results = {
            "energy_std": float(np.sqrt(total_var)),
            "energy_members": energy_members,
        }
        if "energy_bald" in self.implemented_properties:
            results["energy_bald"] = float(0.5 * (np.log(total_var) - np.log(energy_var).mean()))
        return results

    def _forces_uncertainty(self, out: dict[str, np.ndarray]) -> Results:
        aleatoric, spread = (
            out["cov_aleatoric"],
            race._race.member_covariance(torch.from_numpy(out["forces"])).numpy(),
        )
        epistemic = spread + out["cov_epistemic"]
        results: Results = {
            "forces_cov_aleatoric": matrix_from_six(aleatoric),
            "forces_cov_epistemic": matrix_from_six(epistemic),
            "forces_cov": matrix_from_six(aleatoric + epistemic),
            "forces_members": out["forces"],
        }
        if "logdet_aleatoric" in out:
            results["bald"] = 0.5 * (
                np.linalg.slogdet(results["forces_cov"])[1] - out["logdet_aleatoric"]
            )
        return results

    def _stress(self, out: dict[str, np.ndarray], volume: float, uncertain: bool) -> Results:
        virial, voigt = out["virial"].reshape(-1, 3, 3), list(SIX_TO_VOIGT)
        six = 0.5 * (virial + virial.transpose(0, 2, 1)).reshape(-1, 9)[:, [0, 4, 8, 1, 2, 5]]
        stress = -six[:, voigt] / volume  # [G, 6]
        if not uncertain:
            return {"stress": stress.mean(0)}
        noise, spread = out["virial_cov"][voigt][:, voigt] / volume**2, np.cov(stress.T, bias=True)
        return {
            "stress": stress.mean(0),
            "stress_cov_aleatoric": noise,
            "stress_cov_epistemic": spread,
            "stress_cov": noise + spread,
            "stress_std": np.sqrt(np.diagonal(noise + spread)),
            "stress_members": stress,
        }

    def _intervals(self, results: Results) -> Results:
        std = {
            name: results[f"{name}_std"]
            for name in ("energy", "stress")
            if f"{name}_std" in results
        }
        std["forces"] = np.sqrt(np.diagonal(results["forces_cov"], axis1=1, axis2=2))
        factors = self.interval_factors
        return {
            name: factors[quantity] * std[quantity]
            for name, quantity in INTERVALS.items()
            if quantity in factors and quantity in std
        }

    def _warn_without_core(self, core: race._race.Zbl, species: np.ndarray) -> None:
        elements = self.metadata["elements"]
        for a, b in combinations_with_replacement(np.unique(species).tolist(), 2):
            if not core.has(a, b):
                pair = f"{elements[a]} and {elements[b]}"
                # Python prints one line of many that are the same.
                warnings.warn(
                    f"zbl: no core between {pair}, a pair that the training set of model "
                    f"{self.path} does not have",
                    stacklevel=2,
                )

    def _interval_factors(self, path: str | Path, level: float) -> dict[str, float]:
        """Of every calibrated quantity.

        Raises:
            RaceError: the artifact carries no calibration, or one that does not reach the
                level for any quantity.
        """
        calibrated = [
            quantity
            for quantity in INTERVALS.values()
            if quantity in self.metadata.get("intervals", {})
        ]
        if "force_std_scale" in self.metadata["calibration"] and "forces" not in calibrated:
            calibrated.append("forces")
        if not calibrated:
            remedy = "`race evaluate --calibrate`, then `race export --calibration`"
            raise RaceError("not calibrated, so it has no intervals", where=path, remedy=remedy)
        factors, refusals = {}, []
        for quantity in calibrated:
            try:
                factors[quantity] = self.model.interval_factor(quantity, level)
            except RaceError as error:
                refusals.append(error)
        if not factors:
            raise refusals[0]
        return factors

    def _energy_var(self, node_energy_var: np.ndarray) -> np.ndarray:
        """[n, M] -> aleatoric variance of the total energy, [M] eV^2."""
        if self.metadata["head"] == "point":
            return np.zeros(node_energy_var.shape[1])
        if self.metadata["energy_aggregation"] == "paper":  # exp(mean_i s_i)
            return np.exp(node_energy_var.mean(0))
        return node_energy_var.sum(0)
