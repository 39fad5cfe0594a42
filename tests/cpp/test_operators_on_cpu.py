"""The other CUDA kernels (linear maps, edge basis, sums of forces, covariances), compiled for
the CPU, against the operators' own CPU kernels. They take the place of these in torch's
dispatcher: what is above it (autograd, the runtime) runs unchanged.
"""

import pytest
import torch

from race.deploy.chain import chain_fused
from race.deploy.readout import readout_fused, readout_vjp_fused
from race.model.gate import gate_fused
from race.model.heads import quadrupole_basis
from race.model.linear import linear_fused
from tests.deploy import test_chain as chains
from tests.deploy import test_readout as readouts
from tests.model import test_gate as gates
from tests.model import test_linear as linears
from tests.model.operators import worst

from .test_cuda_on_cpu import emulated, library

assert library  # loaded there, or this file is skipped with it
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
both = pytest.mark.parametrize("dtype", TOLERANCE)


def launches(function) -> int:
    """How many kernels it launches; the second time, when everything is remembered."""
    with emulated():
        function()
        before = torch.ops.race_on_cpu.launches()
        function()
        return torch.ops.race_on_cpu.launches() - before


def compare(function, tolerance):
    """function() on the CPU's kernels and on CUDA's: a list of tensors."""
    expected = function()
    before = torch.ops.race_on_cpu.launches()
    with emulated():
        found = function()
        again = function()
    assert torch.ops.race_on_cpu.launches() > before or all(t.numel() == 0 for t in expected)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))  # nothing is atomic
    assert all(a.dtype == b.dtype for a, b in zip(found, expected, strict=True))
    assert worst(found, expected) < tolerance


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@both
@pytest.mark.parametrize("n_species", [1, 3])
@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("shapes", linears.SHAPES)
def test_linear_and_its_derivatives(shapes, n_members, n_species, dtype):
    operands, rest = linears.make(shapes, n_members, n_species, dtype=dtype)
    compare(lambda: linears.derivatives(linear_fused, operands, rest), TOLERANCE[dtype])


def test_linear_of_many_atoms():
    """Several parts of the sum over atoms; a species of one atom."""
    operands, (species, *rest) = linears.make([(3, 9, 33)], 2, 4, n=700)
    species[5] = 3
    compare(lambda: linears.derivatives(linear_fused, operands, (species, *rest)), 1e-12)


@pytest.mark.parametrize(
    "blocks",
    [
        [1, 4, 6, 0, 0, 0, 1, 4, 3, 0, 8, 24],  # read the same columns
        [1, 4, 6, 0, 0, 0, 1, 4, 6, 4, 8, 0],  # share matrices
        [1, 4, 6, 0, 0, 0, 1, 5, 3, 3, 8, 24],  # read some of the same columns
    ],
)
def test_linear_of_blocks_that_share(blocks):
    operands = [draw(9, 8).requires_grad_(), draw(1, 2, 40, seed=1).requires_grad_()]
    species = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0])
    compare(lambda: linears.derivatives(linear_fused, operands, (species, blocks, 16)), 1e-12)


@both
@pytest.mark.parametrize("with_rows", [True, False])
@pytest.mark.parametrize("n, M, S", [(50, 1, 1), (50, 3, 4), (1, 2, 2), (0, 2, 2)])
def test_chain(n, M, S, with_rows, dtype):
    x, rows, *rest = chains.make(n, M, S, dtype)

    def run():
        given = [each.clone() for each in x]
        return [*given, *chain_fused(given, rows if with_rows else None, *rest)]

    compare(run, TOLERANCE[dtype])


def test_an_atom_of_no_species_gives_nan():
    """The device is not waited for, and no number is made up."""
    x, rows, species, *rest = chains.make(9, 2, 3, torch.float64)
    species[4], species[7] = -1, 3
    with emulated():
        made = chain_fused([each.clone() for each in x], None, species, *rest)
    columns = made[0][:, : 2 * 16]
    assert columns[[4, 7]].isnan().all() and columns[[0, 1, 2, 3, 5, 6, 8]].isfinite().all()


def test_changed_species_are_noticed():
    (x, weight), (species, *rest) = linears.make([(1, 5, 7)], 1, 3)
    run = lambda: linear_fused(x.detach(), weight.detach(), species[2:9], *rest)  # noqa: E731
    x = x[2:9]
    compare(lambda: [run()], 1e-12)
    species.copy_(species.flip(0))
    compare(lambda: [run()], 1e-12)


@both
@pytest.mark.parametrize("lmax", range(4))
@pytest.mark.parametrize("n_edges, n_groups", [(77, 1), (13, 3), (0, 2)])
def test_edge_basis(n_edges, n_groups, lmax, dtype):
    vector = draw(n_edges, 3, dtype=dtype)
    bar_x = draw(n_edges, n_groups, dtype=dtype, seed=1).unsqueeze(2)
    bar_sh = draw(n_edges, n_groups, (lmax + 1) ** 2, dtype=dtype, seed=2)
    tangent = draw(n_edges, n_groups, 3, dtype=dtype, seed=3)
    basis = torch.ops.race
    compare(
        lambda: [
            *basis.edge_basis(vector, lmax, 4.0),
            basis.edge_basis_vjp(vector, lmax, 4.0, bar_x, bar_sh),
            basis.edge_basis_vjp(vector, lmax, 4.0, bar_x[:, :1].expand_as(bar_x), bar_sh),
            *basis.edge_basis_jvp(vector, lmax, 4.0, tangent),
        ],
        TOLERANCE[dtype],
    )


def edges(n_total=30, begin=4, n=17, n_edges=300, G=2, dtype=torch.float64):
    """Of a part of a domain's receivers; some receive nothing, row 3 sends more than a warp."""
    gen = torch.Generator().manual_seed(0)
    sender = torch.randint(n_total, (n_edges,), generator=gen)
    sender[: n_edges // 4] = 3
    receiver = torch.randint(n, (n_edges,), generator=gen).sort().values if n else sender[:0]
    row_ptr = torch.zeros(n + 1, dtype=torch.long)
    row_ptr[1:] = torch.bincount(receiver, minlength=n).cumsum(0)
    grad, vector = draw(n_edges, G, 3, dtype=dtype), draw(n_edges, 3, seed=1)
    return grad, vector, sender, row_ptr, begin, 0.3, n_total


@both
@pytest.mark.parametrize("with_atoms", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        dict(),
        dict(G=1),
        dict(n_edges=5000),
        dict(n_edges=0, begin=0),
        dict(n_edges=0, n=0, begin=0),
    ],
)
def test_sums_of_edges(sizes, with_atoms, dtype):
    *arguments, n_total = edges(dtype=dtype, **sizes)
    G = arguments[0].shape[1]

    def run():
        sums = [draw(n_total, G, 3, seed=5), draw(G, 9, seed=6), draw(n_total, 9, seed=7)]
        torch.ops.race.edge_sums(*arguments, *sums[:2], sums[2] if with_atoms else None)
        return sums

    compare(run, 1e-12)


def test_sums_of_edges_in_torch_alone():
    *arguments, n_total = edges()
    results = []
    for key in (torch._C.DispatchKey.CPU, torch._C.DispatchKey.PrivateUse1):
        sums = [draw(n_total, 2, 3, seed=5), draw(2, 9, seed=6), draw(n_total, 9, seed=7)]
        torch.ops.race.edge_sums.default.redispatch(torch._C.DispatchKeySet(key), *arguments, *sums)
        results.append(sums)
    assert worst(*results) < 1e-12


@both
def test_periodic_fold(dtype):
    owner = torch.tensor([3, 3, 0, 5, 3, 0, 3])

    def run():
        rows = draw(6 + len(owner), 37, dtype=dtype)
        torch.ops.race.periodic_fold(rows, owner)
        return [rows]

    (rows,) = run()
    expected = draw(13, 37, dtype=dtype)
    for ghost, atom in enumerate(owner.tolist()):
        expected[atom] += expected[6 + ghost]
    assert worst([rows], [expected]) < TOLERANCE[dtype]
    compare(run, TOLERANCE[dtype])


@both
@gates.members
@gates.cases
@pytest.mark.parametrize("n", [7, 0])
def test_gate_and_its_derivatives(n, irreps, n_members, dtype):
    operands, blocks = gates.make(irreps, n_members, dtype, n=n)
    compare(lambda: gates.derivatives(gate_fused, operands, blocks, n_members), TOLERANCE[dtype])


@both
@readouts.sizes
@pytest.mark.parametrize("n", [9, 0])
def test_readout(n, T, R, H, S, Q, dtype):
    forward, backward = readouts.operands(T, R, H, S, Q, dtype, n=n)
    compare(lambda: [readout_fused(*forward), readout_vjp_fused(*backward)], TOLERANCE[dtype])


@both
def test_energies_of_atoms(dtype):
    out, species = draw(5, 2, 3, dtype=dtype), torch.tensor([1, 0, 2, 1, 0])
    scale, shift, bar = draw(3, seed=1), draw(3, seed=2), draw(2, seed=3)
    run = lambda: [  # noqa: E731
        torch.ops.race.node_energy(out, species, scale, shift),
        torch.ops.race.node_energy_vjp(species, scale, bar, out),
    ]
    compare(run, TOLERANCE[dtype])
    species[1], species[3] = 3, -1  # an atom of no species has no energy
    with emulated():
        assert all(torch.equal(t.isnan().all(1), (species < 0) | (species > 2)) for t in run())


@both
@pytest.mark.parametrize(
    "head, n_out", [("cholesky", 8), ("equivariant", 9), ("evidential", 11), ("eip", 21)]
)
def test_covariances(head, n_out, dtype):
    raw, forces = draw(40, 3, n_out, dtype=dtype), draw(40, 3, 3, dtype=dtype, seed=1)
    basis = quadrupole_basis(dtype)

    def run():
        six = torch.ops.race.force_covariance(raw, basis, head, 0.2, 1e-6)
        return [six, torch.ops.race.member_covariance(forces), torch.ops.race.log_determinant(six)]

    compare(run, {torch.float64: 1e-12, torch.float32: 2e-5}[dtype])


def test_launches_of_operators():
    """What a step launches is counted by operator (test_step.py); here, what each launches."""
    x, rows, *rest = chains.make(9, 2, 3, torch.float64)
    (y, weight), (species, *shape) = linears.make([(1, 5, 3), (3, 2, 7)], 1, 3)
    grad = draw(14, shape[-1])
    *arguments, n_total = edges()
    sums = [torch.zeros(n_total, 2, 3).double(), torch.zeros(2, 9).double()]
    run = torch.ops.race
    counts = {
        "linear": lambda: run.linear(y.detach(), weight.detach(), species, *shape),
        "linear_backward": lambda: run.linear_backward(
            grad, y.detach(), weight.detach(), species, shape[0], [True, True]
        ),
        "edge_sums": lambda: run.edge_sums(*arguments, *sums, None),
        "edge_basis": lambda: run.edge_basis(arguments[1], 3, 4.0),
    }
    assert {name: launches(each) for name, each in counts.items()} == {
        "linear": 1,
        "linear_backward": 2,
        "edge_sums": 2,
        "edge_basis": 1,
    }


def test_tables_are_uploaded_once():
    """The second call of linear and of its adjoints sends nothing and reads nothing."""
    (x, weight), (species, *shape) = linears.make([(1, 6, 3), (3, 2, 5)], 2, 3)
    grad = draw(x.shape[0], shape[-1])
    arguments = (grad, x.detach(), weight.detach(), species, shape[0], [True, True])
    run = torch.ops.race_on_cpu
    before, counts = run.uploads(), []
    with emulated():
        for _ in range(3):
            torch.ops.race.linear_backward(*arguments)
            counts.append((run.uploads(), run.reads()))
    assert counts[0] == counts[1] == counts[2] and counts[0][0] > before


def test_a_planted_error_is_seen():
    x, rows, species, weight, *rest = chains.make(9, 2, 3, torch.float64)
    expected = chain_fused([each.clone() for each in x], rows, species, weight, *rest)
    weight[0, 0] *= 1 + 1e-9
    with emulated():
        found = chain_fused([each.clone() for each in x], rows, species, weight, *rest)
    assert worst(found, expected) > TOLERANCE[torch.float64]
