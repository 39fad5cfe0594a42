"""The covariance of the stress: its irreps, its rotation, positive definiteness, and that it
adds up over atoms.
"""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.data.graph import collate
from race.errors import RaceError
from race.heads import HEADS, NOISE_BOUND
from race.model.expm import expm_symmetric
from race.model.heads import quadrupole_basis
from race.model.reference import Reference
from race.model.stress import StressCovariance, blocks

from .conftest import graph_of, make_model
from .test_race import transformed


def model_of(**changes):
    return make_model(**{"stress_head": "equivariant", **changes})


def on_six(matrix: np.ndarray) -> np.ndarray:
    """[6, 6] of sigma -> R sigma R^T on the six columns."""
    out = np.zeros((6, 6))
    for k, (a, b) in enumerate(zip(SIX_ROWS, SIX_COLUMNS, strict=True)):
        unit = np.zeros((3, 3))
        unit[a, b] = unit[b, a] = 1.0
        out[:, k] = (matrix @ unit @ matrix.T)[list(SIX_ROWS), list(SIX_COLUMNS)]
    return out


def virial_cov(model, *frames) -> np.ndarray:
    """[n_frames, M, 6, 6] eV^2"""
    return model(collate([graph_of(frame) for frame in frames])).virial_cov.detach().numpy()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("inversion", [1.0, -1.0])
def test_rotation(atoms, head, inversion):
    model, matrix = (
        model_of(head=head),
        inversion * Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix(),
    )
    before, after = virial_cov(model, atoms), virial_cov(model, transformed(atoms, matrix))
    D = on_six(matrix)
    assert np.abs(after - D @ before @ D.T).max() < 1e-10 * np.abs(before).max()
    assert np.abs(after - before).max() > 1e-2 * np.abs(before).max()  # the comparison can fail


def test_noise_adds_up_over_atoms(atoms):
    """k copies: k times the variance of the virial, 1/k of that of the stress. And frames of
    a batch do not mix.
    """
    model = model_of()
    single, double = virial_cov(model, atoms)[0], virial_cov(model, atoms.repeat((1, 1, 2)))[0]
    assert np.abs(double - 2 * single).max() < 1e-10 * np.abs(double).max()
    together = virial_cov(model, atoms, atoms.repeat((2, 1, 1)))
    assert (
        np.abs(together[0] - single).max() < 1e-10 * np.abs(single).max()
        and np.abs(together[1] - double).max() < 1e-9
    )
    assert np.abs(together[1] - together[0]).max() > 0.1 * np.abs(single).max()


def test_positive_definite():
    """Also far outside what training gives; eigenvalues stay within the bounds of the generator."""
    covariance = StressCovariance("equivariant", 0.1, torch.float64)
    raw = 30.0 * torch.randn(
        200, 2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    cov, generator = covariance(raw), covariance.generator(raw)
    eigenvalues = torch.linalg.eigvalsh(cov)
    assert (
        eigenvalues.min() > 0 and torch.isfinite(cov).all() and torch.equal(generator, generator.mT)
    )
    bounds = (NOISE_BOUND + 1.0) + (4.0 + 1.0)  # of the trace over 6 and of the norm of the rest
    assert torch.linalg.eigvalsh(generator).abs().max() < bounds
    assert (cov - cov.mT).abs().max() < 1e-13 * cov.abs().max()


def test_isotropic_noise():
    """All channels 0: sigma0^2 A^2 for a diagonal component, half of it off the diagonal, as
    isotropy wants.
    """
    cov = StressCovariance("point", 0.3, torch.float64)(torch.zeros(1, 1, 23, dtype=torch.float64))
    torch.testing.assert_close(
        cov[0, 0], 0.09 * torch.diag(torch.tensor([1, 1, 1, 0.5, 0.5, 0.5], dtype=torch.float64))
    )


def test_blocks_are_the_irreps():
    """With a I: orthogonal, 1 + 1 + 5 + 5 + 9 = 21 dimensions, all of the symmetric 6x6
    matrices.
    """
    of_b, of_t, of_u, of_vw = blocks(torch.float64)
    parts = [
        torch.eye(6, dtype=torch.float64).flatten()[None] / 6**0.5,
        of_b[None],
        of_t,
        of_u,
        of_vw,
    ]
    ranks = [int(torch.linalg.matrix_rank(part)) for part in parts]
    assert ranks == [1, 1, 5, 5, 9] and int(torch.linalg.matrix_rank(torch.cat(parts))) == 21
    for k, part in enumerate(parts):
        singular = torch.linalg.svdvals(part)[: ranks[k]]
        torch.testing.assert_close(singular, torch.ones_like(singular))
        for other in parts[:k]:
            assert (part @ other.T).abs().max() < 1e-13


@pytest.mark.parametrize("seed", range(4))
def test_products_reach_every_4e(seed):
    """Sylvester's theorem: v and w of any 4e exist."""
    generator = torch.Generator().manual_seed(seed)
    of_vw = blocks(torch.float64)[3]
    target = torch.randn(25, dtype=torch.float64, generator=generator) @ of_vw
    best = torch.inf
    for _ in range(8):  # from a few starts: the residual has local minima
        vw = torch.randn(2, 5, dtype=torch.float64, generator=generator).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [vw],
            max_iter=500,
            tolerance_grad=1e-14,
            tolerance_change=1e-16,
            line_search_fn="strong_wolfe",
        )

        def residual(vw=vw):
            return (((vw[0][:, None] * vw[1]).flatten() @ of_vw - target) ** 2).sum()

        def closure(vw=vw, residual=residual, optimizer=optimizer):
            optimizer.zero_grad()
            value = residual()
            value.backward()
            return value

        optimizer.step(closure)
        best = min(best, float(residual().detach()))
    assert best < 1e-12 * float((target**2).sum())


def test_basis_rotates_with_the_features():
    """t, u, v, w turned as l=2 features turn C: what ties the blocks to e3nn's harmonics."""
    covariance = StressCovariance("point", 0.1, torch.float64)
    matrix = torch.from_numpy(Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix())
    basis = quadrupole_basis(torch.float64).view(5, 3, 3)
    D = torch.einsum("mab,ac,ncd,bd->mn", basis, matrix, basis, matrix)
    raw = torch.randn(7, 23, dtype=torch.float64)
    turned = torch.cat([raw[:, :3], (raw[:, 3:].view(7, 4, 5) @ D.T).flatten(1)], dim=1)
    six = torch.from_numpy(on_six(matrix.numpy()))
    torch.testing.assert_close(
        covariance(turned), six @ covariance(raw) @ six.T, rtol=0, atol=1e-13
    )


def test_expm():
    s = torch.randn(50, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = s + s.mT
    s = 10.0 * s / torch.linalg.matrix_norm(s, 2)[:, None, None]
    want = torch.linalg.matrix_exp(s)
    assert ((expm_symmetric(s) - want).abs().amax((1, 2)) / want.abs().amax((1, 2))).max() < 1e-11
    assert torch.autograd.gradcheck(expm_symmetric, (s[:2] * 0.1).requires_grad_())


@pytest.mark.parametrize("head", HEADS)
def test_other_channels_are_where_they_were(atoms, head):
    """Against the e3nn reference, every channel; and heads read theirs as without a stress head."""
    model, plain = model_of(head=head, radial_knots=0), make_model(head=head, radial_knots=0)
    graph = graph_of(atoms)
    result = model(graph)
    torch.set_default_dtype(torch.float64)
    try:
        _, out = Reference(model.config).load_member(model, 1)(
            graph.species, graph.edge_vector, graph.edge_index
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(out[:, 1:] / model.n_layers, result.raw[:, 1, 1:], rtol=0, atol=1e-12)
    if HEADS[head].tensors == 0:
        return  # without a reader of l=2 features the model has fewer weights
    n_scalars, own = plain.layers[0].readout.n_scalars, dict(model.named_parameters())
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if name.endswith("readout.wt"):
                p.copy_(own[name][..., -p.shape[-1] :])
            else:
                p.copy_(own[name][..., :n_scalars] if name.endswith("readout.w2") else own[name])
    without = plain(graph)
    for name in ("energy", "forces", "energy_var"):
        torch.testing.assert_close(
            getattr(result, name), getattr(without, name), rtol=0, atol=1e-11
        )
    torch.testing.assert_close(
        model.forces_cov(result.raw), plain.forces_cov(without.raw), rtol=0, atol=1e-11
    )


def test_needs_l2_features():
    with pytest.raises(RaceError, match="stress_head equivariant reads l=2 features"):
        model_of(head="energy", irreps_hidden="8x0e+8x1o")
