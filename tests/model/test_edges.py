"""The edge basis against e3nn and against autograd; race::edge_basis against its stock-
torch twin.
"""

import pytest
import torch
from e3nn import o3

from race.model.edges import EdgeBasis
from race.model.fused import HAS_FUSED

R_MAX = 4.0
DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6}
fused_only = pytest.mark.skipif(
    not HAS_FUSED, reason="race._race is not built: there is no fused edge basis to test"
)


def make(lmax=3, tabulated=False, fused=HAS_FUSED):
    basis = EdgeBasis(R_MAX, 8, 6, lmax, tabulated)
    basis.fused = fused
    return basis


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def e3nn_basis(vector, lmax):
    """x [E, 1] and Y [E, S], differentiable."""
    return vector.norm(dim=1, keepdim=True) / R_MAX, o3.spherical_harmonics(
        list(range(lmax + 1)), vector, True, "component"
    )


def worst(a, b):
    """Largest difference relative to the largest value, or to 1."""
    return float(((a - b).abs().max() / b.abs().max().clamp_min(1.0)) if b.numel() else 0.0)


def test_harmonics_equal_e3nn():
    vector = random(50, 3)
    for lmax in range(4):
        for basis in (make(lmax), make(lmax, fused=False), make(lmax, tabulated=True)):
            assert worst(basis(vector)[1], e3nn_basis(vector, lmax)[1]) < 1e-13


def test_vjp_equals_autograd():
    vector = random(20, 3).requires_grad_()
    for tabulated in (False, True):
        basis = make(tabulated=tabulated, fused=False)
        radial, sh, radial_grad, sh_grad = basis(vector)
        bar_radial, bar_sh = random(20, 2, radial.shape[1], seed=1), random(20, 2, 16, seed=2)
        ours = basis.vjp(vector, radial_grad, sh_grad, bar_radial, bar_sh)
        for group in range(2):
            total = (radial * bar_radial[:, group]).sum() + (sh * bar_sh[:, group]).sum()
            (expected,) = torch.autograd.grad(total, vector, retain_graph=True)
            assert torch.allclose(ours[:, group], expected, rtol=0, atol=1e-10)
        assert not torch.allclose(ours[:, 0], expected)  # groups have their own adjoints


def test_every_construction_is_the_same_bit_for_bit():
    one, other = make(), make()
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, dict(other.named_buffers())[name])


# ---- the compiled operators ----------------------------------------------------------------------


@fused_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("n_edges", [0, 1, 8, 53])  # less than a vector of edges, one, and a rest
@pytest.mark.parametrize("lmax", range(4))
def test_fused_equals_aten_and_e3nn(lmax, n_edges, groups, dtype):
    fused, aten = make(lmax, True), make(lmax, True, fused=False)
    vector = 2.0 * random(n_edges, 3, dtype=dtype)
    # The axes
    vector[:3] = torch.tensor([[0.0, 1.5, 0.0], [-2.0, 0.0, 0.0], [0.0, 0.0, 1e-3]], dtype=dtype)[
        :n_edges
    ]
    bar_x, bar_sh = (
        random(n_edges, groups, 1, dtype=dtype, seed=1),
        random(n_edges, groups, (lmax + 1) ** 2, dtype=dtype, seed=2),
    )
    x, sh, *empty = fused(vector)
    x_aten, sh_aten, *gradients = aten(vector)
    ours, slow = (
        fused.vjp(vector, *empty, bar_x, bar_sh),
        aten.vjp(vector, *gradients, bar_x, bar_sh),
    )
    assert [t.shape for t in empty] == [(n_edges, 0)] * 2
    assert (
        x.shape == (n_edges, 1)
        and sh.shape == (n_edges, (lmax + 1) ** 2)
        and ours.shape == (n_edges, groups, 3)
    )

    leaf = vector.to(torch.float64).requires_grad_()  # e3nn in float64 whatever the dtype
    values = e3nn_basis(leaf, lmax)
    totals = [
        (values[0] * bar_x[:, g]).sum() + (values[1] * bar_sh[:, g]).sum() for g in range(groups)
    ]
    expected = torch.stack(
        [torch.autograd.grad(total, leaf, retain_graph=True)[0] for total in totals], 1
    )
    r = leaf.detach().norm(dim=1)[:, None, None]  # harmonics change by 1 / r
    for found, twin, exact in (
        (x, x_aten, values[0]),
        (sh, sh_aten, values[1]),
        (r * ours, r * slow, r * expected),
    ):
        assert worst(found, exact.detach()) < TOLERANCE[dtype]
        assert worst(found, twin) < TOLERANCE[dtype]


@fused_only
@pytest.mark.parametrize("s", range(1, 16))
def test_a_planted_error_is_seen(s):
    """One coefficient off by 1e-11 is above the tolerance, in values and in adjoints."""
    fused, aten = make(3, True), make(3, True, fused=False)
    aten.sh_coefficients[:, s] *= 1 + 1e-11
    aten.sh_gradient.view(-1, 16, 3)[:, s] *= 1 + 1e-11
    vector, bar_x, bar_sh = (
        random(53, 3),
        random(53, 1, 1, seed=1),
        torch.zeros(53, 1, 16, dtype=torch.float64),
    )
    bar_sh[..., s] = 1.0
    assert worst(fused(vector)[1], aten(vector)[1]) > TOLERANCE[torch.float64]
    r = vector.norm(dim=1)[:, None, None]
    ours, slow = (basis.vjp(vector, *basis(vector)[2:], bar_x, bar_sh) for basis in (fused, aten))
    assert worst(r * ours, r * slow) > TOLERANCE[torch.float64]


@fused_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lmax", range(4))
def test_any_strides(lmax, dtype):
    """Adjoints come expanded, transposed, sliced; edge vectors as columns."""
    S = (lmax + 1) ** 2
    vector = random(3, 19, dtype=dtype).t()
    bar_x = random(1, 1, 1, dtype=dtype, seed=1).expand(19, 2, 1)
    bar_sh = random(2, S, 40, dtype=dtype, seed=2).permute(2, 0, 1)[1:39:2]
    dense = [t.contiguous() for t in (vector, bar_x, bar_sh)]
    assert torch.equal(
        torch.ops.race.edge_basis_vjp(vector, lmax, R_MAX, bar_x, bar_sh),
        torch.ops.race.edge_basis_vjp(dense[0], lmax, R_MAX, *dense[1:]),
    )
    for a, b in zip(
        torch.ops.race.edge_basis(vector, lmax, R_MAX),
        torch.ops.race.edge_basis(dense[0], lmax, R_MAX),
        strict=True,
    ):
        assert torch.equal(a, b)


@fused_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("lmax", range(4))
def test_jvp_is_the_transpose_of_vjp(lmax, groups, dtype):
    vector, tangent = random(21, 3, dtype=dtype), random(21, groups, 3, dtype=dtype, seed=1)
    bar_x, bar_sh = (
        random(21, groups, 1, dtype=dtype, seed=2),
        random(21, groups, (lmax + 1) ** 2, dtype=dtype, seed=3),
    )
    gradient = torch.ops.race.edge_basis_vjp(vector, lmax, R_MAX, bar_x, bar_sh)
    x, sh = torch.ops.race.edge_basis_jvp(vector, lmax, R_MAX, tangent)

    def pairing(a, b):
        return (a * b).sum((1, 2)) * vector.norm(dim=1)

    expected = pairing(gradient, tangent)
    assert worst(pairing(x, bar_x) + pairing(sh, bar_sh), expected) < TOLERANCE[dtype]
    if lmax:
        wrong = sh * (1 + 1e3 * TOLERANCE[dtype])
        assert worst(pairing(x, bar_x) + pairing(wrong, bar_sh), expected) > TOLERANCE[dtype]


@fused_only
@pytest.mark.parametrize("lmax", range(4))
def test_gradcheck(lmax):
    vector = random(5, 3)
    bar_x, bar_sh = (
        random(5, 2, 1, seed=1).requires_grad_(),
        random(5, 2, (lmax + 1) ** 2, seed=2).requires_grad_(),
    )
    assert torch.autograd.gradcheck(
        lambda *bars: torch.ops.race.edge_basis_vjp(vector, lmax, R_MAX, *bars), (bar_x, bar_sh)
    )


@fused_only
def test_threads_change_nothing():
    vector, bar_x, bar_sh = (
        random(20001, 3),
        random(20001, 2, 1, seed=1),
        random(20001, 2, 16, seed=2),
    )

    def run():
        return *torch.ops.race.edge_basis(vector, 3, R_MAX), torch.ops.race.edge_basis_vjp(
            vector, 3, R_MAX, bar_x, bar_sh
        )

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(one, run(), strict=True))
    finally:
        torch.set_num_threads(before)


@fused_only
def test_meta():
    vector = torch.empty(7, 3, device="meta")
    x, sh = torch.ops.race.edge_basis(vector, 2, R_MAX)
    bar = torch.ops.race.edge_basis_vjp(
        vector, 2, R_MAX, x.unsqueeze(1).expand(-1, 2, -1), sh.unsqueeze(1).expand(-1, 2, -1)
    )
    assert x.shape == (7, 1) and sh.shape == (7, 9) and bar.shape == (7, 2, 3)
    assert [t.shape for t in torch.ops.race.edge_basis_jvp(vector, 2, R_MAX, bar)] == [
        (7, 2, 1),
        (7, 2, 9),
    ]


@fused_only
def test_arguments_are_checked():
    vector, bar_x, bar_sh, tangent = random(4, 3), random(4, 2, 1), random(4, 2, 4), random(4, 2, 3)
    values, vjp, jvp = (
        torch.ops.race.edge_basis,
        torch.ops.race.edge_basis_vjp,
        torch.ops.race.edge_basis_jvp,
    )
    bad = [
        (
            values,
            (vector[:, :2], 1, R_MAX),
            r"edge_basis: edge_vector: expected \[n_edges, 3\], got \[4, 2\]",
        ),
        (values, (vector.half(), 1, R_MAX), "edge_vector: expected float32 or float64, got Half"),
        (values, (vector, 4, R_MAX), "lmax: expected 0 to 3, got 4"),
        (values, (vector, 1, 0.0), "r_max: expected a positive length, got 0"),
        (
            vjp,
            (vector, 1, R_MAX, bar_x[:3], bar_sh),
            r"edge_basis_vjp: bar_x: expected \[4, n_groups, 1\], got \[3, 2, 1\]",
        ),
        (vjp, (vector, 2, R_MAX, bar_x, bar_sh), r"bar_sh: expected \[4, 2, 9\], got \[4, 2, 4\]"),
        (vjp, (vector, 1, R_MAX, bar_x[:, :1], bar_sh), r"bar_sh: expected \[4, 1, 4\]"),
        (vjp, (vector, 1, R_MAX, bar_x, bar_sh.float()), "bar_sh: expected Double, got Float"),
        (
            jvp,
            (vector, 1, R_MAX, tangent[..., :2]),
            r"edge_basis_jvp: tangent: expected \[4, n_groups, 3\], got \[4, 2, 2\]",
        ),
    ]
    for operator, arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            operator(*arguments)
    with pytest.raises(
        NotImplementedError, match="edge_vector: expected a tensor that requires no gradient"
    ):
        vjp(vector.requires_grad_(), 1, R_MAX, bar_x, bar_sh)


@fused_only
def test_scripted():
    """The fused basis calls the operators; the portable one, and Bessel features, stock
    operations alone.
    """
    vector = random(6, 3)
    for tabulated, fused in ((True, True), (True, False), (False, True)):
        basis = make(2, tabulated, fused=fused)
        scripted = torch.jit.script(basis)
        assert ("race::edge_basis" in str(scripted.inlined_graph)) == (tabulated and fused)
        for a, b in zip(scripted(vector), basis(vector), strict=True):
            assert torch.equal(a, b)
