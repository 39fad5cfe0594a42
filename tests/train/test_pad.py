"""Models of several sizes as members of one: each predicts what it did alone."""

import ase
import pytest
import torch

from race.errors import RaceError
from race.model.race import RACE
from race.train import pad
from race.train.members import stack_members
from tests.deploy.conftest import graph_of, make_model, triclinic

SMALL = dict(
    irreps_hidden="4x0e+3x1o+2x2e",
    n_layers=2,
    lmax=2,
    correlation=2,
    n_features=3,
    radial_mlp=[5, 4],
    readout_hidden=6,
    head="equivariant",
    gate=True,
    n_members=1,
)
# What the second model has otherwise
KINDS: dict[str, dict] = {
    "channels": dict(irreps_hidden="7x0e+3x1o+5x2e"),
    "widest": dict(irreps_hidden="4x0e+9x1o+2x2e"),
    "parities": dict(irreps_hidden="4x0e+2x0o+3x1o+4x1e+2x2e+2x2o"),
    "degree": dict(irreps_hidden="4x0e+3x1o+2x2e+5x3o"),
    "harmonics": dict(lmax=3),
    "degree and harmonics": dict(irreps_hidden="4x0e+3x1o+2x2e+5x3o", lmax=3),
    "layers": dict(n_layers=4),
    "factors": dict(correlation=3),
    "no products": dict(correlation=1),
    "species": dict(n_features=5),
    "radial": dict(radial_mlp=[5, 9]),
    "readout": dict(readout_hidden=11),
    "neighbours": dict(avg_num_neighbors=17.0),
    "scale": dict(scale=[0.035, 0.065]),
    "mix": dict(
        irreps_hidden="6x0e+2x0o+2x1o+3x1e+2x2e+1x3o",
        lmax=3,
        n_layers=1,
        correlation=3,
        n_features=2,
        radial_mlp=[4, 8],
        readout_hidden=5,
        n_members=2,
        avg_num_neighbors=17.0,
        scale=[0.035, 0.065],
    ),
}
HEADS: dict[str, dict] = {
    "equivariant": {},
    "evidential": dict(head="evidential"),
    "stress": dict(stress_head="equivariant"),
    "point": dict(head="point"),
    "cholesky": dict(head="cholesky"),
    "paper": dict(head="energy", energy_aggregation="paper"),
}


def molecule() -> ase.Atoms:
    """Five atoms in vacuum; one has no neighbour."""
    positions = [[0, 0, 0], [1.4, 0.2, 0], [2.1, 1.5, 0.3], [0.7, 1.1, 1.6], [9, 0, 0]]
    return ase.Atoms("BNBNN", positions)


def predictions(model: RACE) -> dict[str, torch.Tensor]:
    """All that a model gives of a molecule and of a cell, the member axis second."""
    model.eval()
    found = {}
    for place, frame in (("molecule", molecule()), ("cell", triclinic())):
        out = model(graph_of(frame))
        moments = dict(zip(("aleatoric", "epistemic"), model.own_forces_cov(out.raw), strict=True))
        tensors = out.tensors() | {k: v for k, v in moments.items() if v is not None}
        tensors["raw"] = out.raw[..., 1:]  # the energy's is in units of the scale
        found |= {f"{place}, {name}": tensor.detach() for name, tensor in tensors.items()}
    return found


def differing(models: list[RACE]) -> dict[str, float]:
    """Where the members of the stack predict otherwise than the models alone, and by how much."""
    together = predictions(stack_members(models))
    alone = [predictions(model) for model in models]
    assert any("forces" in name for name in together)
    found = {}
    for name, whole in together.items():
        parts = torch.cat([part[name] for part in alone], 1)
        # A molecule has no stress
        assert torch.equal(whole.isnan(), parts.isnan())
        assert whole.isnan().any() == (name == "molecule, stress")
        error = ((whole - parts).abs() / (1 + parts.abs())).nan_to_num().flatten().tolist()
        if max(error, default=0.0) > 1e-10:
            found[name] = max(error)
    return found


def pair(change: dict, common: dict | None = None) -> list[RACE]:
    """SMALL with what both have in common, and with a change."""
    small = SMALL | (common or {})
    return [make_model(seed=0, **small), make_model(seed=1, **small | change)]


@pytest.mark.parametrize("gate", [True, False], ids=["gate", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_members_predict_what_they_did(kind, gate):
    models = pair(KINDS[kind], {"gate": gate})
    assert differing(models) == {} and differing(models[::-1]) == {}


@pytest.mark.parametrize("head", HEADS)
def test_of_every_head(head):
    assert differing(pair(KINDS["mix"], HEADS[head])) == {}


def test_without_products():
    """Two models of the paper's form: convolutions aim at what is read alone."""
    assert differing(pair(KINDS["mix"] | {"correlation": 1}, {"correlation": 1})) == {}


def test_models_of_one_size_keep_their_weights():
    models = pair({})
    stacked = stack_members(models)
    for name, parameter in stacked.named_parameters():
        assert torch.equal(parameter, torch.cat([m.get_parameter(name) for m in models]))
    assert stacked.config.irreps_hidden == SMALL["irreps_hidden"]


@pytest.mark.parametrize("model", pair(KINDS["mix"], HEADS["stress"]), ids=["small", "mix"])
def test_every_weight_has_one_name(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        names = []
        for name, matrix in pad.matrices(model):
            names.append(name)
            matrix.weight.add_(1.0)
        assert all((parameter == 1.0).all() for parameter in model.parameters())
    assert len(set(names)) == len(names)


def roles(model: RACE) -> list[str]:
    """What a matrix is, whatever its layer and irreps."""
    return sorted({role(name) for name, _ in pad.matrices(model)})


def role(name: tuple) -> str:
    return "gate" if "gate" in name else next(part for part in name if isinstance(part, str))


@pytest.mark.parametrize("wrong", roles(make_model(**SMALL)))
def test_a_wrong_factor_shows(wrong, monkeypatch):
    """An error of a thousandth in any one kind of matrix."""
    right = pad.matrices

    def matrices(model):
        for name, matrix in right(model):
            slip = 1.001 if role(name) == wrong and model.config.n_layers == 3 else 1.0
            yield name, pad.Matrix(matrix.weight, slip * matrix.factor)

    models = pair(KINDS["mix"], {"n_layers": 3})
    models[1] = make_model(seed=1, **SMALL | KINDS["mix"] | {"n_layers": 4})
    assert differing(models) == {}
    monkeypatch.setattr(pad, "matrices", matrices)
    assert differing(models)


@pytest.mark.parametrize(
    "option, value",
    [
        ("r_max", 3.1),
        ("gate", False),
        ("head", "cholesky"),
        ("stress_head", "equivariant"),
        ("n_radial_basis", 6),
        ("bessel_decay", 1.0),
        ("radial_scale", 0.1),
        ("angular_decay", 0.5),
        ("radial_knots", 64),
        ("envelope_p", 5),
        ("elements", ["N", "B"]),
        ("atomic_energies", [-3.0, 2.5]),
        ("sigma0", 0.2),
        ("pooling", "mean"),
    ],
)
def test_what_no_padding_can_make_equal_is_refused(option, value):
    with pytest.raises(RaceError, match=f"^run b: model.{option} differs, so the models cannot"):
        stack_members(pair({option: value}), ["run a", "run b"])


def test_depth_and_proportions_are_refused():
    with pytest.raises(RaceError, match="model.radial_mlp .* expected 2 hidden layers as in"):
        stack_members(pair({"radial_mlp": [5, 4, 4]}))
    with pytest.raises(RaceError, match=r"model.scale .* expected \[1.0, 1.857.*got \[1.0, 2.0"):
        stack_members(pair({"scale": [0.7, 1.4]}))
