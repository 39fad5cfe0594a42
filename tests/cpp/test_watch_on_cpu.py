"""What the emulation of CUDA finds: planted errors, and none in any of the kernels."""

import contextlib
import re
from pathlib import Path

import pytest
import torch

from race.deploy.chain import chain_fused
from race.deploy.readout import readout_fused, readout_vjp_fused
from race.model.gate import gate_fused
from race.model.linear import linear_fused
from tests.deploy import test_chain as chains
from tests.deploy import test_readout as readouts
from tests.model import conv_cases
from tests.model import test_gate as gates
from tests.model import test_linear as linears
from tests.model import test_product_kernel as products

from . import test_cuda_on_cpu, test_product_on_cpu
from .test_cuda_on_cpu import emulated
from .test_operators_on_cpu import draw, edges


@contextlib.contextmanager
def watched():
    """Tensors must be made inside: others' memory is not known."""
    torch.ops.race_on_cpu.watch(True)
    try:
        with emulated():
            yield
    finally:
        torch.ops.race_on_cpu.watch(False)


PLANTED = {
    "missing barrier": "(race of two lanes|shared memory is read)",
    "race": "race of two lanes",
    "off by one": "access behind a tensor",
    "uninitialised": "shared memory is read, not written",
}


@pytest.mark.parametrize("error", PLANTED)
def test_planted_errors_are_found(error):
    with watched(), pytest.raises(RuntimeError, match=PLANTED[error]):
        torch.ops.race_on_cpu.planted(error)
    torch.ops.race_on_cpu.planted(error)  # unwatched


def test_no_error_is_no_error():
    with watched():
        assert torch.ops.race_on_cpu.planted("none").tolist() == [*range(1, 32), 0]


@pytest.mark.parametrize("knots", [0, 5])
@pytest.mark.parametrize("multiprocessors", ["1", "8"])
def test_conv(knots, multiprocessors, monkeypatch):
    monkeypatch.setenv("RACE_EMULATED_MULTIPROCESSORS", multiprocessors)
    with watched():
        operands = conv_cases.make("5x0e+33x1o", 1, 2, 2, knots=knots)
        test_cuda_on_cpu.results(*operands)


def test_an_atom_of_several_chunks():
    """More edges than the adjoints of edges are summed of together."""
    with watched():
        operands, rest = conv_cases.make("5x0e+33x1o", 1, n_edges=40, n_receivers=1, knots=5)
        test_cuda_on_cpu.results(operands, rest)


def test_product():
    with watched():
        test_product_on_cpu.results(*products.make("0e+1o", 3, 5, 2, 2))


def test_linear_maps():
    with watched():
        operands, rest = linears.make([(1, 5, 3), (3, 33, 40)], 2, 3)
        linears.derivatives(linear_fused, operands, rest)
        x, *rest = chains.make(9, 2, 3, torch.float32)
        chain_fused(x, *rest)


def test_beyond_the_cutoff():
    """Edges without weight are left out by some lanes of a warp, and whole chunks of them."""
    with watched():
        (g, _, table, sh), rest = conv_cases.make("5x0e+33x1o", 1, 2, 2, knots=5)
        x = torch.linspace(0.2, 2.0, sh.shape[0], dtype=g.dtype)[:, None].expand(-1, 2)
        test_cuda_on_cpu.results([g, x, table, sh], rest)
        test_cuda_on_cpu.results([g, x + 1.0, table, sh], rest)


@pytest.mark.parametrize("n_members", [1, 3])
def test_gates(n_members):
    with watched():
        operands, blocks = gates.make(gates.IRREPS[-1], n_members, torch.float64, n=70)
        gates.derivatives(gate_fused, operands, blocks, n_members)


def test_readout_and_energies():
    with watched():
        forward, backward = readouts.operands(2, 4, 33, 9, 2, torch.float64, n=70)
        readout_fused(*forward)
        readout_vjp_fused(*backward)
        out, species = draw(70, 2, 3), torch.arange(70) % 3
        scale, shift, bar = draw(3, seed=1), draw(3, seed=2), draw(2, seed=3)
        torch.ops.race.node_energy(out, species, scale, shift)
        torch.ops.race.node_energy_vjp(species, scale, bar, out)


def test_edges_and_covariances():
    with watched():
        *arguments, n_total = edges(n_edges=90)
        vector, grad = arguments[1], arguments[0]
        race = torch.ops.race
        x, sh = race.edge_basis(vector, 3, 4.0)
        race.edge_basis_vjp(vector, 3, 4.0, x.unsqueeze(1), sh.unsqueeze(1))
        race.edge_basis_jvp(vector, 3, 4.0, grad)
        sums = [torch.zeros(n_total, 2, 3).double(), torch.zeros(2, 9).double()]
        race.edge_sums(*arguments, *sums, torch.zeros(n_total, 9).double())
        race.periodic_fold(draw(13, 7), torch.tensor([3, 3, 0, 5, 3, 0, 3]))
        six = race.force_covariance(draw(40, 2, 9), draw(5, 9), "equivariant", 0.2, 1e-6)
        race.log_determinant(six)
        race.member_covariance(draw(40, 3, 3))


KERNELS = {
    "EdgeAdjoints": test_an_atom_of_several_chunks,
    **dict.fromkeys(["Gather", "TableSums", "Intervals", "CsrEdges"], test_conv),
    **dict.fromkeys(["ProductArguments", "ProductWeights"], test_product),
    **dict.fromkeys(["MapArguments", "OuterArguments"], test_linear_maps),
    "GateArguments": test_gates,
    "ReadoutArguments": test_readout_and_energies,
    "ReadoutVjpArguments": test_readout_and_energies,
    "NodeEnergyArguments": test_readout_and_energies,
    "NodeEnergyVjpArguments": test_readout_and_energies,
    "EdgeBasis": test_edges_and_covariances,
    "ForceSums": test_edges_and_covariances,
    "VirialSums": test_edges_and_covariances,
    "Fold": test_edges_and_covariances,
    "HeadCovariance": test_edges_and_covariances,
    "MemberCovariance": test_edges_and_covariances,
    "LogDeterminant": test_edges_and_covariances,
}
CUDA = Path(__file__).parents[2] / "cpp" / "cuda"
# Of the kernels whose lanes share memory, by file
SHARED = {"EdgeAdjoints": "conv_edge_adjoints", "MapArguments": "linear"}
BARRIERS = [
    pytest.param(kernel, number, id=f"{kernel}, line {number}")
    for kernel, name in SHARED.items()
    for number, line in enumerate((CUDA / f"{name}.cu").read_text().splitlines(), 1)
    if "__syncwarp()" in line
]


@contextlib.contextmanager
def planted(error, kernel, line=0):
    torch.ops.race_on_cpu.plant(error, kernel, line)
    try:
        yield
    finally:
        torch.ops.race_on_cpu.plant("", "", 0)


def run(kernel, monkeypatch):
    """The test above that launches a kernel."""
    if KERNELS[kernel] is test_conv:
        test_conv(5, "8", monkeypatch)
    elif KERNELS[kernel] is test_gates:
        test_gates(3)
    else:
        KERNELS[kernel]()


def test_every_kernel_is_watched():
    text = "".join(path.read_text() for path in CUDA.glob("*.cu"))
    found = set(re.findall(r"const __grid_constant__ (\w+)", text))
    assert found == KERNELS.keys()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "error, finding",
    [("second writer", "a race of two lanes"), ("short tensor", "an access behind a tensor")],
)
def test_errors_of_every_kernel_are_found(error, finding, kernel, monkeypatch):
    """Two blocks that write the same numbers; an operand that is a number too short."""
    with planted(error, kernel), pytest.raises(RuntimeError, match=finding):
        run(kernel, monkeypatch)


@pytest.mark.parametrize("kernel", SHARED)
def test_unwritten_shared_memory_is_found(kernel, monkeypatch):
    with planted("missing write", kernel), pytest.raises(RuntimeError, match="not written"):
        run(kernel, monkeypatch)


@pytest.mark.parametrize("kernel, line", BARRIERS)
def test_missing_barriers_are_found(kernel, line, monkeypatch):
    """Each barrier of the kernels, taken away."""
    with planted("missing barrier", kernel, line), pytest.raises(RuntimeError, match="launch"):
        run(kernel, monkeypatch)
