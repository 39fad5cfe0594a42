"""The paper's configurations by name (sections 2.1-2.3; supplementary B-F). `model: race-3bpa` in a config selects one."""

from race.config import ModelConfig
from race.errors import RaceError

_LMAX3 = "64x0e+64x0o+64x1o+64x1e+64x2e+64x2o+64x3o+64x3e"
_LMAX2 = "64x0e+64x0o+64x1o+64x1e+64x2e+64x2o"
_COMMON = dict(n_layers=5, n_radial_basis=8, radial_mlp=[64, 64], readout_hidden=64, envelope_p=2)

PRESETS: dict[str, dict] = {
    "race-3bpa": dict(r_max=6.0, irreps_hidden=_LMAX3, lmax=3, n_features=128, avg_num_neighbors=26.0, elements=["H", "C", "N", "O"], head="cholesky", **_COMMON),
    "race-rmd17": dict(r_max=5.0, irreps_hidden=_LMAX3, lmax=3, n_features=128, avg_num_neighbors=15.0, elements=["H", "C", "N", "O"], head="cholesky", **_COMMON),
    "race-qm9": dict(r_max=5.0, irreps_hidden=_LMAX2, lmax=2, n_features=128, avg_num_neighbors=28.0, elements=["H", "C", "N", "O", "F"], head="point", **_COMMON),
    "race-psb3": dict(r_max=6.0, irreps_hidden=_LMAX2, lmax=2, n_features=64, avg_num_neighbors=13.0, elements=["H", "C", "N"], head="point", **_COMMON),
    "race-obn25": dict(
        r_max=3.0, irreps_hidden="32x0o+32x0e+16x1o+16x1e+8x2o+8x2e", lmax=3, n_features=32, avg_num_neighbors=19.0, elements=["B", "N"], head="cholesky", **_COMMON
    ),
}  # fmt: skip


def preset(name: str, **changes) -> ModelConfig:
    """A named configuration, with any option changed."""
    if name not in PRESETS:
        raise RaceError("no such configuration", where="model", expected=", ".join(PRESETS), got=name)
    return ModelConfig(**{**PRESETS[name], **changes})
