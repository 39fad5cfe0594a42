"""The paper's configurations by name (sections 2.1-2.3; supplementary B-F). `model:
race-3bpa` in a config selects one.
"""

from race.errors import RaceError

_LMAX3 = "64x0e+64x0o+64x1o+64x1e+64x2e+64x2o+64x3o+64x3e"
_LMAX2 = "64x0e+64x0o+64x1o+64x1e+64x2e+64x2o"
_OBN25 = "32x0o+32x0e+16x1o+16x1e+8x2o+8x2e"
_COMMON = {
    "n_layers": 5,
    "n_radial_basis": 8,
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
) -> dict:
    options = {"elements": elements.split(), "r_max": r_max, "irreps_hidden": irreps, "lmax": lmax}
    return (
        _COMMON | options | {"n_features": n_features, "avg_num_neighbors": neighbors, "head": head}
    )


PRESETS: dict[str, dict] = {
    "race-3bpa": _options("H C N O", 6.0, _LMAX3, 3, 128, 26.0, "cholesky"),
    "race-rmd17": _options("H C N O", 5.0, _LMAX3, 3, 128, 15.0, "cholesky"),
    "race-qm9": _options("H C N O F", 5.0, _LMAX2, 2, 128, 28.0, "point"),
    "race-psb3": _options("H C N", 6.0, _LMAX2, 2, 64, 13.0, "point"),
    "race-obn25": _options("B N", 3.0, _OBN25, 3, 32, 19.0, "cholesky"),
}


def preset(name: str) -> dict:
    """The options of a named configuration, as `ModelConfig` takes them."""
    if name not in PRESETS:
        raise RaceError(
            "no such configuration", where="model", expected=", ".join(PRESETS), got=name
        )
    return dict(PRESETS[name])
