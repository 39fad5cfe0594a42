"""Architectures by name: `model: medium`, or `model: {preset: race-3bpa, n_members: 4}`.

Sizes, and the paper's configurations (sections 2.1-2.3; supplementary B-F).
"""

from typing import Any

from race.errors import RaceError

_LMAX3 = "64x0e+64x0o+64x1o+64x1e+64x2e+64x2o+64x3o+64x3e"
_LMAX2 = "64x0e+64x0o+64x1o+64x1e+64x2e+64x2o"
_OBN25 = "32x0o+32x0e+16x1o+16x1e+8x2o+8x2e"
_COMMON = {
    "n_layers": 5,
    "correlation": 1,
    "gate": False,
    "n_radial_basis": 8,
    "bessel_decay": 0.0,
    "radial_scale": 1.0,
    "angular_decay": 0.0,
    "radial_knots": 384,
    "radial_mlp": [64, 64],
    "readout_hidden": 64,
    "envelope_p": 2,
}


def _options(
    elements: str,
    r_max: float,
    irreps: str,
    lmax: int,
    n_features: int,
    neighbors: float,
    head: str,
) -> dict[str, Any]:
    options = {"elements": elements.split(), "r_max": r_max, "irreps_hidden": irreps, "lmax": lmax}
    return (
        _COMMON | options | {"n_features": n_features, "avg_num_neighbors": neighbors, "head": head}
    )


PRESETS: dict[str, dict[str, Any]] = {
    "race-3bpa": _options("H C N O", 6.0, _LMAX3, 3, 128, 26.0, "cholesky"),
    "race-rmd17": _options("H C N O", 5.0, _LMAX3, 3, 128, 15.0, "cholesky"),
    "race-qm9": _options("H C N O F", 5.0, _LMAX2, 2, 128, 28.0, "point"),
    "race-psb3": _options("H C N", 6.0, _LMAX2, 2, 64, 13.0, "point"),
    "race-obn25": _options("B N", 3.0, _OBN25, 3, 32, 19.0, "cholesky"),
}


# Errors and costs of each are in docs/decisions.md; a layer more is worth less than products
_SMOOTH = {"bessel_decay": 1.0, "radial_scale": 0.1, "angular_decay": 0.5}
_SIZE = {"n_layers": 2, "lmax": 2, "correlation": 2, "gate": True} | _SMOOTH
SIZES: dict[str, dict[str, Any]] = {
    "small": _SIZE | {"irreps_hidden": "16x0e+16x1o+16x2e"},
    "medium": _SIZE | {"irreps_hidden": "32x0e+32x1o+32x2e"},
    "large": _SIZE | {"irreps_hidden": "32x0e+32x1o+32x2e+32x3o", "lmax": 3},
}
DEFAULT = "medium"


def preset(name: str) -> dict[str, Any]:
    """The options of a named architecture, as `ModelConfig` takes them."""
    known = SIZES | PRESETS
    if name not in known:
        raise RaceError("no such architecture", where="model", expected=", ".join(known), got=name)
    return dict(known[name])


def with_default_size(model: object) -> object:
    """A section `model` that writes out no architecture is that of the default size."""
    if model is None:
        return preset(DEFAULT)
    if isinstance(model, dict) and "irreps_hidden" not in model:
        return preset(DEFAULT) | model
    return model
