"""A trained model -> one artifact. TorchScript is known here and in cpp/src/segments.cpp,
nowhere else.
"""

import copy
import io
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

import race
import race._race
from race.data.graph import Batch
from race.deploy.artifact import FORMAT_VERSION, seal, to_json
from race.deploy.folded import FoldedRACE, count_trunks
from race.deploy.grade import last_features
from race.deploy.selftest import make_selftest, table_error
from race.errors import RaceError
from race.files import is_device
from race.interrupt import postpone_interrupt
from race.model import mixture
from race.model.grade import QUANTILE, Grade, fit
from race.model.race import RACE
from race.posterior.protocol import member_of
from race.posterior.registry import posterior_name

GradeName = Literal["mahalanobis", "gmm"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
KEPT_FLOAT64 = (
    *("scale", "atomic_energies", "cg", "power_cg", "sh_coefficients", "sh_gradient", "sh_degree"),
    *("projection", "mean", "whiten", "log_share", "quantile"),  # of the grade
)


def export_model(
    model: RACE,
    path: str | Path,
    *,
    dtype: Literal["float32", "float64"] | None = None,
    portable: bool = False,
    summary: Mapping[str, Any] | None = None,
    calibration: Mapping[str, float] | None = None,
    intervals: Mapping[str, Any] | None = None,
    leaders: Mapping[str, RACE] | None = None,
    training_set: Iterable[Batch] = (),
    grade: GradeName = "mahalanobis",
) -> str:
    """Compiles a model into an artifact, then loads and self-tests it; the file appears only
    when that has passed.

    Args:
        model: not changed.
        path: NAME.race.pt, replaced if it exists.
        dtype: of the stored weights and the default to run in; None keeps the model's.
        portable: stock torch operators only, slower; else race::conv, which librace brings.
        summary: run/summary.json of the run the model comes from, with its `identity` and what it
            was `trained_on` (race.train.run), which evaluations and calibrations are held to.
        calibration: constants by name, as librace and LAMMPS apply them.
        intervals: calibrated half-widths (race.evaluate.report.fit_intervals), from which
            they answer any level.
        leaders: models of one member that the artifact carries beside the ensemble, for
            dynamics that pay for one: "1" .. "M" its own members (`alone`), "distilled".
        training_set: what the grade is fitted to a sample of (race.model.grade), in random
            order; without it the artifact has none.
        grade: a distance (race.model.grade), or "gmm" (race.model.mixture).

    Returns:
        The sha256 of the artifact.

    Raises:
        RaceError: the model cannot be deployed, or the artifact fails its self-test.
    """
    path, summary = Path(path), summary or {}
    if model.config.pooling == "mean" and model.config.energy_aggregation == "paper":
        raise RaceError(
            "the paper's variance is of a sum over atoms",
            expected="model.energy_aggregation extensive with model.pooling mean",
            got="paper",
        )
    if not path.parent.is_dir():
        raise RaceError("no such folder", where=path.parent)
    if is_device(path):
        raise RaceError("is a device or a pipe", where=path, expected="the name of a file")
    dtype = dtype or ("float64" if model.embedding.dtype == torch.float64 else "float32")
    about = (dtype, portable, summary, calibration or {}, intervals or {})
    extra: dict[str, str | bytes] = {}
    for name, leader in (leaders or {}).items():
        check_leader(name, leader, model)
        extra[f"leaders/{name}"] = archive(leader, *about, (), grade, extra={})

    target = Path(os.path.realpath(path))  # a link stays one
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(seal(archive(model, *about, training_set, grade, extra=extra)))
        digest = race._race.load(str(partial)).sha256
        os.replace(partial, target)
    except OSError as error:
        raise RaceError(f"cannot write the artifact ({error.strerror})", where=path) from None
    finally:
        partial.unlink(missing_ok=True)
    return digest


def archive(
    model: RACE,
    dtype: str,
    portable: bool,
    summary: Mapping[str, Any],
    calibration: Mapping[str, float],
    intervals: Mapping[str, Any],
    training_set: Iterable[Batch],
    kind: GradeName,
    *,
    extra: Mapping[str, str | bytes],
) -> bytes:
    """The artifact without its trailer."""
    deployed, keep_float64 = fold(model, DTYPES[dtype], portable)
    training = summary.get("training", {})
    grade = summary.get("posterior", {}).get("grade", {})
    if model.has_leverage and kind == "mahalanobis":  # its distance is the grade
        grade = {"quantile": QUANTILE} | grade
        deployed.of_training = copy.deepcopy(deployed.leverage)
    else:
        grade = fit_grade(deployed, training_set, kind)
    metadata = metadata_of(model, dtype, portable, keep_float64, summary, calibration)
    if grade:
        metadata["grade"] = grade
    if intervals:
        metadata["intervals"] = dict(intervals)
    if model.constants.baseline is not None:
        metadata["baseline"] = model.constants.baseline.model_dump(mode="json")
    selftest = make_selftest(deployed, model, training.get("min_distance"))
    error = table_error(model, training.get("min_distance"))
    metadata["radial_table"] = {"knots": model.config.radial_knots, "force_error": error}
    own = {"metadata.json": to_json(metadata), "selftest.json": to_json(selftest)}
    return script(deployed, {**own, **extra})


def alone(model: RACE) -> dict[str, RACE]:
    """Each member by itself, by its number from 1. If members share trunks, one of each
    trunk is given: the others would not cost less than all of them.
    """
    return {str(m + 1): member_of(model, m) for m in range(count_trunks(model))}


def check_leader(name: str, leader: RACE, model: RACE) -> None:
    """Raises RaceError: it cannot stand in for the ensemble."""
    for key in ("elements", "r_max"):
        if getattr(leader.config, key) != getattr(model.config, key):
            raise RaceError(
                f"leader {name} is of another {key}",
                expected=str(getattr(model.config, key)),
                got=str(getattr(leader.config, key)),
            )
    if leader.constants.baseline != model.constants.baseline:
        expected, got = (
            baseline.model_dump(mode="json") if baseline else "none"
            for baseline in (model.constants.baseline, leader.constants.baseline)
        )
        raise RaceError(f"leader {name} adds to another baseline", expected=expected, got=got)
    if leader.n_members != 1:
        raise RaceError(
            f"leader {name} is an ensemble", expected="1 member", got=f"{leader.n_members}"
        )


def fold(model: RACE, dtype: torch.dtype, portable: bool = False) -> tuple[FoldedRACE, list[str]]:
    """The deployed form in `dtype`, and the names of the buffers that stay float64 in any
    dtype (E0, scale, coefficients).
    """
    deployed = FoldedRACE(model).set_fused(not portable)
    named = [*deployed.named_parameters(), *deployed.named_buffers()]
    keep_float64 = [name for name, _ in named if name.split(".")[-1] in KEPT_FLOAT64]
    for name, tensor in named:
        if tensor.is_floating_point() and name not in keep_float64:
            tensor.data = tensor.data.to(dtype)
    return deployed.eval().requires_grad_(False), keep_float64


def fit_grade(
    deployed: FoldedRACE, training_set: Iterable[Batch], kind: GradeName = "mahalanobis"
) -> dict[str, Any]:
    """Fits the grade of a model in place; what metadata.json says of it, empty without atoms."""
    runs = copy.deepcopy(deployed)
    runs.prepare()
    features = last_features(runs, training_set)
    if features is None:
        return {}
    n_species = len(deployed.atomic_energies)
    if kind == "gmm":
        deployed.of_training = by_mixture = mixture.MixtureGrade()
        return mixture.fit(by_mixture, *features, n_species)
    deployed.of_training = by_distance = Grade()
    return fit(by_distance, *features, n_species)


def script(model: FoldedRACE, extra: Mapping[str, str | bytes]) -> bytes:
    """TorchScript archive with the segments as methods, which librace runs as they are."""
    # The compiler takes the exception of Ctrl-C for an attribute that is missing
    with warnings.catch_warnings(), postpone_interrupt():
        warnings.simplefilter("ignore")  # TorchScript announces its deprecation at every call
        scripted = torch.jit.script(model)
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer, _extra_files=dict(extra))
    return buffer.getvalue()


def spread_factors(model: RACE) -> dict[str, float]:
    """Factors by which librace multiplies the members' standard deviations, if they are not 1."""
    names = ("energy_spread_factor", "forces_spread_factor")
    factors = {name: getattr(model.constants, name) for name in names}
    return {name: factor for name, factor in factors.items() if factor != 1}


def metadata_of(
    model: RACE,
    dtype: str,
    portable: bool,
    keep_float64: list[str],
    summary: Mapping[str, Any],
    calibration: Mapping[str, float],
) -> dict[str, Any]:
    """metadata.json; cpp/include/race/artifact.h says what librace reads of it."""
    config, training, versions = (
        model.config,
        summary.get("training", {}),
        summary.get("versions", {}),
    )
    per_element = training.get("per_element", {})
    n_trunks = count_trunks(model)
    return {
        "format": FORMAT_VERSION,
        "race_version": race.__version__,
        "git_commit": versions.get("git"),
        "torch_version": torch.__version__,
        "dtype": dtype,
        "portable": portable,
        "elements": model.constants.elements,
        "r_max": config.r_max,
        "n_layers": config.n_layers,
        "n_members": config.n_members,
        "n_trunks": n_trunks,
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "halo_widths": [width * n_trunks // config.n_members for width in model.g_dims[1:]],
        # To librace `evidential` is whatever member tells its own epistemic part
        "head": "evidential" if model.has_leverage else config.head,
        "stress_head": config.stress_head,
        "energy_aggregation": "mean" if config.pooling == "mean" else config.energy_aggregation,
        "posterior": posterior_name(config, summary),
        "run": summary.get("identity"),
        "trained_on": summary.get("trained_on", []),
        "units": {
            "energy": "eV",
            "length": "Angstrom",
            "forces_cov": "(eV/Angstrom)^2",
            "stress": "eV/Angstrom^3",
        },
        "keep_float64": keep_float64,
        "calibration": {**calibration, **spread_factors(model)},
        "training": {
            **training,
            "min_distance": training.get("min_distance", {}),
            "max_force": {
                element: values["force_max"]
                for element, values in per_element.items()
                if "force_max" in values
            },
        },
        # A head that predicts no uncertainty has None for it, or NaN, which JSON does not know.
        "validation": {
            name: value
            for name, value in summary.get("validation", {}).items()
            if value is not None and math.isfinite(value)
        },
        "model": config.model_dump(mode="json"),
        "constants": model.constants.model_dump(mode="json"),
    }
