"""The model's symmetries, its forces and stress against finite differences, and its fast
form against the plain one.
"""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from race.config import ModelConfig
from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.data.graph import collate
from race.heads import HEADS
from race.model.race import RACE
from race.model.reference import Reference
from race.presets import PRESETS, preset

from .conftest import graph_of, make_model, small_config

# What a layer does beside the paper's
LAYERS = [
    {},
    {"gate": True},
    {"correlation": 2, "gate": True},
    {"correlation": 3},
]


def transformed(frame, matrix):
    out = frame.copy()
    out.set_cell(frame.cell.array @ matrix.T, scale_atoms=False)
    out.positions = frame.positions @ matrix.T
    return out


def predictions(model, frame, dtype):
    """All that must transform as a scalar, a vector or a tensor, as float64 numpy."""
    result = model(graph_of(frame, dtype))
    out = {"energy": result.energy, "forces": result.forces}
    stress = torch.zeros(*result.stress.shape[:2], 3, 3, dtype=dtype)
    stress[..., SIX_ROWS, SIX_COLUMNS] = result.stress
    stress[..., SIX_COLUMNS, SIX_ROWS] = result.stress
    out["stress"] = stress
    if model.has_forces_cov:
        out["cov"] = model.forces_cov(result.raw)
    return {key: value.detach().double().numpy() for key, value in out.items()}


def rotated(values, matrix):
    out = dict(values)
    out["forces"] = values["forces"] @ matrix.T
    for key in ("stress", "cov"):
        if key in values:
            out[key] = matrix @ values[key] @ matrix.T
    return out


def largest_difference(a, b):
    return max(np.abs(a[key] - b[key]).max() for key in a)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("head", ["equivariant", "evidential"])
@pytest.mark.parametrize("inversion", [1.0, -1.0])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_equivariance(atoms, layer, head, dtype, tolerance, inversion):
    model = make_model(dtype, head=head, **layer)
    matrix = inversion * Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix()
    before, after = (
        predictions(model, atoms, dtype),
        predictions(model, transformed(atoms, matrix), dtype),
    )
    assert np.abs(before["forces"]).max() > 0.1
    scale = max(1.0, np.abs(before["energy"]).max())
    assert largest_difference(after, rotated(before, matrix)) < tolerance * scale
    # The comparison can fail
    assert largest_difference(after, rotated(before, np.eye(3))) > 1e3 * tolerance


def test_cholesky_covariance_does_not_rotate(atoms):
    """The paper's Cholesky head is built from invariants: documented, and the reason for the
    equivariant head.
    """
    model = make_model(head="cholesky")
    matrix = Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix()
    before, after = (
        predictions(model, atoms, torch.float64),
        predictions(model, transformed(atoms, matrix), torch.float64),
    )
    assert np.abs(after["cov"] - before["cov"]).max() < 1e-10
    assert np.abs(after["cov"] - matrix @ before["cov"] @ matrix.T).max() > 1e-6


def test_eip_covariance_turns_with_the_axes_alone(atoms):
    """Documented: its variances are those of x, y and z. Turns that exchange these exchange them;
    others make covariances that a diagonal leaves out.
    """
    model = make_model(head="eip")
    axes = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    before, after = (
        predictions(model, frame, torch.float64) for frame in (atoms, transformed(atoms, axes))
    )
    assert largest_difference(after, rotated(before, axes)) < 1e-10
    assert np.abs(after["cov"] - before["cov"]).max() > 1e-6
    matrix = Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix()
    turned = predictions(model, transformed(atoms, matrix), torch.float64)
    assert np.abs(turned["cov"] - matrix @ before["cov"] @ matrix.T).max() > 1e-6
    of_axes = np.diagonal(matrix @ before["cov"] @ matrix.T, axis1=-2, axis2=-1)
    assert np.abs(np.diagonal(turned["cov"], axis1=-2, axis2=-1) - of_axes).max() > 1e-6


@pytest.mark.parametrize("head", ["cholesky", "equivariant", "evidential", "eip"])
def test_covariance_is_positive_definite(atoms, head):
    model = make_model(head=head)
    # Far outside what training gives
    raw = 30.0 * torch.randn(50, 2, model.n_out, dtype=torch.float64)
    cov = model.forces_cov(raw)
    assert torch.linalg.eigvalsh(cov).min() > 0
    assert (cov - cov.transpose(-1, -2)).abs().max() < 1e-12 * cov.abs().max()
    error = torch.randn(50, 2, 3, dtype=torch.float64)
    quadratic, logdet = model.force_covariance.mahalanobis_logdet(raw, error)
    if head == "evidential":  # mahalanobis_logdet is of Sigma0, `matrix` of nu/(nu-4) Sigma0
        nu = torch.nn.functional.softplus(raw[..., 3]) + 5
        cov = cov / (nu / (nu - 4))[..., None, None]
    direct = torch.einsum("nmi,nmij,nmj->nm", error, torch.linalg.inv(cov), error)
    assert torch.allclose(quadratic, direct, rtol=1e-6)
    assert torch.allclose(logdet, torch.logdet(cov), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", ["energy", "cholesky", "equivariant", "evidential", "eip"])
def test_energy_noise_is_finite_far_from_the_data(head):
    """Whatever the channel says; where training puts it, sigma0^2 exp(s) as it is."""
    model = make_model(head=head)
    raw = torch.zeros(5, 2, model.n_out)
    raw[..., 1] = torch.tensor([-1e3, -9.9, 0.3, 9.9, 1e3]).unsqueeze(1)
    found = model.node_energy_var(raw) / model.sigma0_energy_squared
    assert torch.allclose(found[1:4, 0], torch.exp(raw[1:4, 0, 1]), rtol=1e-6)
    assert torch.allclose(found[[0, 4], 0].log(), torch.tensor([-11.0, 11.0]))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_forces_and_stress_match_finite_differences(atoms, layer):
    model = make_model(**layer)
    result = model(graph_of(atoms))
    step = 1e-4

    def energy(frame):
        return model(graph_of(frame), forces=False).energy[0].detach().numpy()

    forces = result.forces.detach().numpy()
    scale = np.abs(forces).max()
    for atom, axis in [(0, 0), (3, 2), (5, 1)]:
        plus, minus = atoms.copy(), atoms.copy()
        plus.positions[atom, axis] += step
        minus.positions[atom, axis] -= step
        assert (
            np.abs(-(energy(plus) - energy(minus)) / (2 * step) - forces[atom, :, axis]).max()
            < 1e-6 * scale
        )
    stress = result.stress[0].detach().numpy()
    for column, (a, b) in enumerate(zip(SIX_ROWS, SIX_COLUMNS, strict=True)):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            frame = atoms.copy()
            frame.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(energy(frame))
        numeric = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert np.abs(numeric - stress[:, column]).max() < 1e-6 * np.abs(stress).max()


def test_what_is_not_asked_for(atoms):
    model, graph = make_model(), graph_of(atoms)
    everything, forces, energies = (
        part.tensors()
        for part in (model(graph), model(graph, stress=False), model(graph, forces=False))
    )
    assert everything.keys() - forces.keys() == {"stress"} and forces.keys() - energies.keys() == {
        "forces"
    }
    for part in (forces, energies):
        for name, value in part.items():
            assert torch.equal(value, everything[name]), name


@pytest.mark.parametrize(
    "changes",
    [{"head": head} for head in HEADS]
    + LAYERS[1:]
    + [{"bessel_decay": 1.5, "radial_scale": 0.1, "angular_decay": 0.8}],
    ids=str,
)
def test_equals_the_e3nn_reference(atoms, changes):
    model = make_model(radial_knots=0, **changes)
    graph = graph_of(atoms)
    result = model(graph)
    torch.set_default_dtype(torch.float64)
    try:
        for member in range(2):
            reference = Reference(model.config).load_member(model, member)
            vector = graph.edge_vector.clone().requires_grad_()
            energy, out = reference(graph.species, vector, graph.edge_index)
            (gradient,) = torch.autograd.grad(energy.sum(), vector)
            forces = (
                torch.zeros(len(atoms), 3)
                .index_add(0, graph.edge_index[1], gradient)
                .index_add(0, graph.edge_index[0], -gradient)
            )
            assert torch.allclose(energy, result.node_energy[:, member], rtol=0, atol=1e-12)
            assert torch.allclose(forces, result.forces[:, member], rtol=0, atol=1e-11)
            if model.head != "point":
                assert torch.allclose(
                    out[:, 1:] / model.n_layers, result.raw[:, member, 1:], rtol=0, atol=1e-12
                )
        reference.layers[0].radial[0].data += 1e-9  # a planted error is seen
        assert not torch.allclose(
            reference(graph.species, vector, graph.edge_index)[0],
            result.node_energy[:, 1],
            rtol=0,
            atol=1e-12,
        )
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "irreps, lmax",
    [
        ("8x0e+8x1o", 1),
        ("4x0o+4x0e+2x1o+2x1e+2x2o+2x2e", 3),
        ("2x0e+2x0o+2x1o+2x1e+2x2e+2x2o+2x3o+2x3e", 3),
    ],
)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_dropping_dead_features_is_exact(atoms, layer, irreps, lmax):
    model = make_model(
        irreps_hidden=irreps,
        lmax=lmax,
        head="point",
        n_members=1,
        n_layers=2,
        radial_knots=0,
        **layer,
    )
    graph = graph_of(atoms)
    torch.set_default_dtype(torch.float64)
    try:
        energy, _ = Reference(model.config).load_member(model, 0)(
            graph.species, graph.edge_vector, graph.edge_index
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(energy, model(graph, forces=False).node_energy[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_members_are_independent_models(atoms, layer):
    """Each member of the joint network equals the one-member network with its slice of
    the weights.
    """
    model, graph = make_model(**layer), graph_of(atoms)
    joint = model(graph).tensors()
    for member in range(2):
        single = RACE.untrained(small_config(n_members=1, **layer), torch.float64)
        state = {
            key: value[member : member + 1] if value.dim() > 1 else value
            for key, value in model.state_dict().items()
        }
        single.load_state_dict(state)
        alone = single(graph).tensors()
        for key in ("energy", "forces", "stress", "raw"):
            assert torch.allclose(alone[key][:, 0], joint[key][:, member], rtol=0, atol=1e-11), key


def test_batched_equals_single(atoms):
    other = atoms.copy()
    other.rattle(0.05, seed=3)
    model = make_model()
    joint = model(collate([graph_of(atoms), graph_of(other)]))
    for k, frame in enumerate([atoms, other]):
        alone = model(graph_of(frame))
        assert torch.allclose(alone.energy[0], joint.energy[k], atol=1e-11)
        assert torch.allclose(alone.energy_var[0], joint.energy_var[k], atol=1e-11)
        assert torch.allclose(alone.stress[0], joint.stress[k], atol=1e-11)
        assert torch.allclose(
            alone.forces, joint.forces[k * len(atoms) : (k + 1) * len(atoms)], atol=1e-11
        )


@pytest.mark.parametrize("fused", [True, False])
def test_one_layer_has_forces(atoms, fused):
    """Its energy reads invariant features alone, which do not depend on the direction of
    an edge.
    """
    model = make_model(n_layers=1, head="point").set_fused(fused)
    forces = model(graph_of(atoms)).forces
    step = 1e-4
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[0, 0] += sign * step
        energies.append(model(graph_of(moved)).energy[0])
    assert torch.allclose(
        forces[0, :, 0], -(energies[0] - energies[1]) / (2 * step), rtol=1e-6, atol=1e-9
    )


def test_isolated_atom_has_its_own_energy_and_no_force():
    import ase

    model = make_model()
    result = model(graph_of(ase.Atoms("B", positions=[[0, 0, 0]])))
    assert result.forces.abs().max() == 0
    assert torch.isfinite(result.energy).all()


def test_energy_is_smooth_at_the_cutoff():
    import ase

    for envelope_p in (2, 5, 6):
        model = make_model(envelope_p=envelope_p)
        energies, forces = [], []
        for r in (3.2 - 1e-5, 3.2 + 1e-5):
            frame = ase.Atoms("BN", positions=[[0, 0, 0], [0, 0, r]])
            result = model(graph_of(frame))
            energies.append(result.energy)
            forces.append(result.forces)
        assert (energies[0] - energies[1]).abs().max() < 1e-9
        assert (forces[0] - forces[1]).abs().max() < 1e-4 * 1e-3


def test_energy_variance_is_extensive_or_the_papers(atoms):
    double = atoms.repeat((2, 1, 1))
    for aggregation, factor in (("extensive", 2.0), ("paper", 1.0)):
        model = make_model(energy_aggregation=aggregation)
        one, two = model(graph_of(atoms)).energy_var, model(graph_of(double)).energy_var
        assert torch.allclose(two, factor * one, rtol=1e-10)


def test_paper_configurations_have_the_papers_parameter_counts():
    """Millions of parameters of the unfolded form: supplementary tables, 24.26 / 17.64 /
    9.53 / 0.727.
    """
    published = {
        "race-3bpa": "24.26",
        "race-qm9": "17.64",
        "race-psb3": "9.53",
        "race-obn25": "0.727",
    }
    for name in PRESETS:
        count = sum(p.numel() for p in Reference(ModelConfig(**preset(name))).parameters()) / 1e6
        digits = published.get(name)
        if digits:
            assert math.isclose(
                count, float(digits), abs_tol=0.51 * 10 ** -len(digits.split(".")[1])
            ), (name, count)
        assert (
            RACE.untrained(ModelConfig(**preset(name))).constants.elements
            == PRESETS[name]["elements"]
        )


def test_covariance_heads_need_l2():
    from race.errors import RaceError

    with pytest.raises(RaceError, match="2e"):
        make_model(irreps_hidden="8x0e+8x1o", lmax=1)


def test_a_molecule_beside_a_crystal_leaves_the_stress_gradient_finite(atoms):
    molecule = atoms.copy()
    molecule.pbc = False
    model = make_model()
    result = model(collate([graph_of(atoms), graph_of(molecule)]), create_graph=True)
    assert result.stress[1].isnan().all() and result.stress[0].isfinite().all()
    result.stress[0].square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.layers[0].weight_skip.grad is not None
