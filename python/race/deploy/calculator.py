"""ASE calculator over librace: `atoms.calc = race.Calculator("x.race.pt")`."""

import warnings
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes
from ase.outputs import Properties, all_outputs

import race._race
from race.conventions import SIX_TO_VOIGT
from race.data.baseline import Baseline, Contribution
from race.data.graph import cell_volume, species_index
from race.errors import RaceError
from race.predict.artifact import ArtifactPredictor, Members

Results = dict[str, float | np.ndarray]
MEAN = ["energy", "free_energy", "energies", "forces", "stress"]
OF_A_MEAN = ["energy", "energy_std", "energy_members", "energy_bald", "energy_interval"]
# Beside the mean; asking for any one computes them all, in one pass over the members.
ROWS = [
    row
    for row in race._race.quantities()  # type: ignore[attr-defined]
    if row["property"]
]
UNCERTAINTY = [row["property"] for row in ROWS]
INTERVALS = {row["property"]: row["interval_of"] for row in ROWS if row["interval_of"]}

# Angstrom. A GPU keeps its neighbours while atoms move by half of it: sorting and checking new
# ones costs more than pairs of no weight. A CPU takes pairs within the cutoff alone.
SKIN = 0.5


def _add(results: Results, baseline: Contribution) -> None:
    """The baseline's part, in place, to what is a value and not the width of one. A stress that
    it does not have leaves none.
    """
    stress = None if baseline.stress is None else baseline.stress[list(SIX_TO_VOIGT)]
    parts: list[tuple[tuple[str, ...], Any]] = [
        (("energy", "free_energy", "energy_members"), baseline.energy),
        (("forces",), baseline.forces),
        (("forces_members",), baseline.forces[:, None]),
        (("stress", "stress_members"), stress),
    ]
    for names, part in parts:
        for name in names:
            if name in results and part is None:
                del results[name]
            elif name in results:
                results[name] = results[name] + part


def _name_of(dtype: Any) -> str | None:
    """The name "float64" for np.float64, np.dtype("float64") or torch.float64."""
    if dtype is None or isinstance(dtype, str):
        return dtype
    return str(getattr(dtype, "__name__", dtype)).removeprefix("torch.")


class Calculator(AseCalculator):
    """Energies, forces and stress of an artifact, with their uncertainty.

    Beside ASE's own properties, `atoms.calc.get_property(name, atoms)` gives ::

        energy_std            eV, total: aleatoric and spread of the members
        forces_std            [n_atoms, 3] eV/A, the root of the diagonal of forces_cov
        forces_cov            [n_atoms, 3, 3] (eV/A)^2, total = forces_cov_aleatoric +
                              forces_cov_epistemic
        bald                  [n_atoms] nats, 1/2 ln det(forces_cov) - mean_m 1/2 ln
                              det(aleatoric covariance of member m): what the force would
                              tell about which member is right (Houlsby et al. 2011,
                              arXiv:1112.5745)
        grade                 [n_atoms], how unlike the training set an atom's features are: 1 at
                              its 99.9 % quantile; unlike, not how wrong
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

    A property that the artifact cannot give raises ASE's PropertyNotImplementedError:
    with one member, a head without covariance, the stress of a cluster, or anything but
    the energy if the model's target is a mean over atoms. Plain energies and forces do
    not pay for the members' forces.

    Energy, forces and stress of an artifact with a baseline (`race.data.baseline`) are the sum,
    and so are the members'. There are then no `energies`, which not every calculator gives.

    The stress of a slab or a wire is, as in ASE, dE/dstrain over the volume of its three cell
    vectors, vacuum included: times the cell's height it is a slab's stress in eV/A^2.

    Args:
        path: NAME.race.pt.
        device: "cpu", "cuda", "cuda:N" or a torch.device.
        dtype: "float32" or "float64", or torch's and numpy's; None: as exported.
        uncertainty: compute every property at every call, for code that reads them all.
        interval: level of the calibrated intervals, e.g. 0.95; the artifact must carry a
            calibration (`race export --calibration`).
        zbl: add the screened nuclear repulsion of Ziegler, Biersack and Littmark between
            atoms closer than any of their elements in the training set
            (`cpp/include/race/zbl.h`, the `zbl on` of LAMMPS). Uncertainties stay those
            of the model. A structure with two elements that are no pair of the training
            set, and so have no core, is a warning.
        sha256: refuse another artifact than this (8 or more leading digits).
        lead: the source of energies, forces and stress: the "mean" of the members, the
            number of one from 1, or "distilled". With a leader, dynamics pay for one
            member; all are evaluated only if an uncertainty is requested. Uncertainties
            stay the ensemble's, around its own mean. The artifact must carry the leader
            (`race export --leaders`).

    Raises:
        RaceError: on loading, whatever would give wrong numbers; later, an element that
            the model does not know.
    """

    name = "race"
    implemented_properties: list[str] = [*MEAN, *UNCERTAINTY]

    def __init__(
        self,
        path: str | Path,
        device: Any = "cpu",
        dtype: Any = None,
        *,
        uncertainty: bool = False,
        interval: float | None = None,
        zbl: bool = False,
        sha256: str = "",
        lead: str | int = "mean",
        **kwargs: Any,
    ):
        for name, value in (("uncertainty", uncertainty), ("zbl", zbl)):
            if not isinstance(value, bool | np.bool_):  # "off" would be true
                where = f"race.Calculator, {name}"
                raise RaceError("is no bool", where=where, expected="True or False", got=value)
        device, dtype, lead = str(device or "cpu"), _name_of(dtype), str(lead)
        self._arguments = {
            "path": Path(path).absolute(),
            "device": device,
            "dtype": dtype,
            "uncertainty": uncertainty,
            "interval": interval,
            "zbl": zbl,
            "sha256": sha256,
            "lead": lead,
        }
        super().__init__(**kwargs)
        own = set(self.__dict__)
        skin = 0.0 if device == "cpu" else SKIN
        self.predictor = ArtifactPredictor(path, device, dtype, sha256, zbl, skin=skin)
        self.leader = self.predictor
        if lead != "mean":
            self.leader = ArtifactPredictor(path, device, dtype, sha256, zbl, lead, skin)
        self.metadata = self.predictor.metadata
        about = self.predictor.baseline
        self.baseline = None if about is None else Baseline(about)
        # Those to warn of; an export that did not know its training set names none
        elements = self.predictor.elements
        self._untrained = set(elements) - set(
            self.metadata["training"].get("per_element") or elements
        )
        self.always_uncertain = uncertainty
        # By quantity, in units of its predicted standard deviation.
        self.interval_factors = {} if interval is None else self._interval_factors(path, interval)
        self.uncertainty_properties = [row["property"] for row in ROWS if self._gives(row)]
        if self.predictor.intensive:  # of the whole structure alone
            self.uncertainty_properties = [
                name for name in self.uncertainty_properties if name in OF_A_MEAN
            ]
        self.implemented_properties = [
            *(OF_A_MEAN[:1] if self.predictor.intensive else MEAN),
            *self.uncertainty_properties,
        ]
        if self.baseline is not None:
            self.implemented_properties.remove("energies")
        # ase.db tells models apart by these
        self.parameters.update(
            model=Path(path).name,
            sha256=self.predictor.model.sha256,
            dtype=self.predictor.model.dtype,
            interval=interval,
            zbl=zbl,
            lead=lead,
        )
        self._loaded = set(self.__dict__) - own

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """ASE's interface for parameters, of which there are none: options are given when the
        calculator is made.

        Raises:
            RaceError: for any.
        """
        for name in kwargs:
            known = name in self._arguments
            raise RaceError(
                "is decided when the calculator is made" if known else "no such option",
                where=f"race.Calculator, {name}",
                expected=None if known else ", ".join(self._arguments),
                remedy=f"race.Calculator(..., {name}=...)" if known else None,
            )
        return {}

    def export_properties(self) -> Properties:
        """ASE's interface for `Atoms.get_properties`: what ASE knows of the results."""
        return Properties({name: x for name, x in self.results.items() if name in all_outputs})

    def require(self, names: Sequence[str]) -> None:
        """Raises RaceError: an uncertainty of these that the artifact does not give."""
        for name in names:
            if name not in self.uncertainty_properties:
                raise RaceError(
                    "the artifact does not give this uncertainty",
                    where=self.predictor.path,
                    expected=", ".join(self.uncertainty_properties),
                    got=name,
                )

    def __getstate__(self) -> dict[str, Any]:
        """Pickled and copied as its arguments: the copy loads the very same artifact again. What
        others have set, a subclass for instance, goes with it.
        """
        arguments = self._arguments | {"sha256": self.predictor.model.sha256}
        own = {name: x for name, x in self.__dict__.items() if name not in self._loaded}
        return {"arguments": arguments, "own": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Calculator.__init__(self, **state["arguments"])
        self.__dict__.update(state["own"])

    def _gives(self, row: dict[str, Any]) -> bool:
        if row["interval_of"]:
            return row["interval_of"] in self.interval_factors
        return not self.predictor.model.missing(row["name"], row["per_atom"])

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """ASE's interface: fills `results`."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None  # ASE has just set it
        self.results = self._predict(
            self.atoms, self.always_uncertain or any(name in UNCERTAINTY for name in properties)
        )

    def _predict(self, atoms: ase.Atoms, uncertain: bool) -> Results:
        self._warn_of_untrained(atoms)
        if self.predictor.zbl is not None:
            species = species_index(atoms, self.predictor.elements)
            self._warn_without_core(self.predictor.zbl, species)
        # One evaluation does for both, unless a member leads.
        led = self.leader is not self.predictor
        members = self.leader.members(atoms, uncertain and not led)
        energy = float(members.energy.mean())
        results: Results = {
            "energy": energy,
            "free_energy": energy,
            "energies": members.node_energy.mean(1).numpy(),
            "forces": members.forces.mean(1).numpy(),
        }
        has_stress = bool(np.isfinite(cell_volume(atoms)))
        if has_stress:
            results["stress"] = members.stress.mean(0).numpy()[list(SIX_TO_VOIGT)]
        if uncertain:
            everyone = self.predictor.members(atoms) if led else members
            results |= self._uncertainty(everyone, has_stress)
            results |= self._intervals(results)
        if self.baseline is not None:
            _add(results, self.baseline.of(atoms))
        return {
            name: value for name, value in results.items() if name in self.implemented_properties
        }

    def _uncertainty(self, members: Members, has_stress: bool) -> Results:
        moments = self.predictor.moments(members)
        forces, stress, voigt = moments.forces, moments.stress, list(SIX_TO_VOIGT)
        assert forces is not None and stress is not None
        results: Results = {
            "energy_std": float(moments.energy.std[0]),
            "energy_members": members.energy.numpy(),
            "forces_std": forces.std,
            "forces_cov": forces.total,
            "forces_cov_aleatoric": forces.aleatoric,
            "forces_cov_epistemic": forces.epistemic,
            "forces_members": members.forces.numpy(),
        }
        if moments.energy_bald is not None:
            results["energy_bald"] = float(moments.energy_bald[0])
        if moments.forces_bald is not None:
            results["bald"] = moments.forces_bald
        if members.grade is not None:
            results["grade"] = members.grade.numpy()
        if has_stress:
            cov, aleatoric, epistemic = (
                part[0][voigt][:, voigt]
                for part in (stress.total, stress.aleatoric, stress.epistemic)
            )
            results |= {
                "stress_std": stress.std[0][voigt],
                "stress_cov": cov,
                "stress_cov_aleatoric": aleatoric,
                "stress_cov_epistemic": epistemic,
                "stress_members": members.stress.numpy()[:, voigt],
            }
        return results

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

    def _warn_of_untrained(self, atoms: ase.Atoms) -> None:
        """Once for each element that the model has weights for, but never saw."""
        if not self._untrained:
            return
        for symbol in sorted(self._untrained.intersection(atoms.symbols)):
            self._untrained.remove(symbol)
            warnings.warn(
                f"the training set of model {self.predictor.path} has no {symbol}: its "
                "predictions and their deviations mean nothing",
                stacklevel=2,
            )

    def _warn_without_core(self, core: race._race.Zbl, species: np.ndarray) -> None:
        elements = self.predictor.elements
        for a, b in combinations_with_replacement(np.unique(species).tolist(), 2):
            if not core.has(a, b):
                pair = f"{elements[a]} and {elements[b]}"
                # Python prints one line of many that are the same.
                warnings.warn(
                    f"zbl: no core between {pair}, a pair that the training set of model "
                    f"{self.predictor.path} does not have",
                    stacklevel=2,
                )

    def _interval_factors(self, path: str | Path, level: float) -> dict[str, float]:
        """Half-widths of the intervals of every calibrated quantity.

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
                factors[quantity] = self.predictor.model.interval_factor(quantity, level)
            except RaceError as error:
                refusals.append(error)
        if not factors:
            raise refusals[0]
        return factors
