"""librace = the Python model: segments, explicit transpose, members, halo."""

import copy
import zipfile

import numpy as np
import pytest
import race._race
import torch

from race.conventions import SIX_COLUMNS, SIX_ROWS
from race.deploy.export import export_model
from race.errors import RaceError
from race.heads import HEADS
from race.model.race import RACE
from tests.deploy.conftest import (
    difference,
    domains_of,
    eager,
    folded,
    graph_of,
    make_model,
    triclinic,
)

QUANTITIES = [
    "node_energy",
    "forces",
    "virial",
    "node_energy_var",
    "cov_aleatoric",
    "cov_epistemic",
    "virial_cov",
]


def six(nine: torch.Tensor) -> torch.Tensor:
    """[G, 9] -> [G, 6]"""
    return nine.view(-1, 3, 3)[:, SIX_ROWS, SIX_COLUMNS]


def predict(runtime, graph, **request):
    out = runtime.predict(*folded(graph), **request)
    return {**out, "virial": six(out["virial"])}


@pytest.mark.parametrize(
    "changes",
    [
        *({"head": head} for head in HEADS),
        *({"head": head, "stress_head": "equivariant"} for head in [*HEADS][::3]),
        {"n_layers": 2, "radial_knots": 0},
        {"n_layers": 1, "irreps_hidden": "8x0e+8x2e"},
    ],
    ids=str,
)
def test_python_equals_librace(changes, atoms, tmp_path):
    model = make_model(n_members=3, seed=3, **changes)
    export_model(model, tmp_path / "x.race.pt")
    got = predict(
        race._race.load(str(tmp_path / "x.race.pt")),
        graph_of(atoms),
        members=True,
        uncertainty=True,
    )
    want = eager(model, graph_of(atoms))
    for name in QUANTITIES:
        assert difference(got[name], want[name]) < 1e-9, name
    # A weight changed by one part in a million is seen.
    other = copy.deepcopy(model)
    other.layers[0].linear_down.weight.data *= 1 + 1e-6
    assert difference(got["forces"], eager(other, graph_of(atoms))["forces"]) > 1e-9


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("stored", ["float32", "float64"])
@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_float32(stored, correlation, portable, atoms, tmp_path):
    model = make_model(correlation=correlation, gate=correlation > 1)
    export_model(model, tmp_path / "x.race.pt", dtype=stored, portable=portable)
    got = predict(
        race._race.load(str(tmp_path / "x.race.pt"), dtype="float32"),
        graph_of(atoms),
        members=True,
        uncertainty=True,
    )
    want = eager(model, graph_of(atoms))
    for name in QUANTITIES:
        assert difference(got[name], want[name]) < 5e-5, name
    assert difference(got["forces"], want["forces"]) > 1e-12  # it did run in float32


def test_float32_artifact_runs_in_float64(model, atoms, tmp_path):
    single = RACE(model.config, model.constants, torch.float32)
    single.load_state_dict(model.state_dict())
    export_model(single, tmp_path / "x.race.pt")
    runtime = race._race.load(str(tmp_path / "x.race.pt"), dtype="float64")
    double = RACE(model.config, model.constants, torch.float64)
    double.load_state_dict(single.state_dict())
    # The fold is rounded to float32 on export; everything after it is in float64.
    assert (
        difference(
            predict(runtime, graph_of(atoms), members=True)["forces"],
            eager(double, graph_of(atoms))["forces"],
        )
        < 1e-5
    )
    assert runtime.dtype == "float64"


def code_of(path) -> str:
    """The TorchScript source in an artifact."""
    with zipfile.ZipFile(path) as archive:
        return "".join(
            archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")
        )


def test_portable_equals_fast(model, atoms, tmp_path, runtime, artifact):
    export_model(model, tmp_path / "x.race.pt", portable=True)
    portable, fast = race._race.load(str(tmp_path / "x.race.pt")), runtime
    assert "ops.race" not in code_of(tmp_path / "x.race.pt") and "ops.race.conv" in code_of(
        artifact
    )
    got, want = (
        predict(each, graph_of(atoms), members=True, uncertainty=True) for each in (portable, fast)
    )
    for name in QUANTITIES:
        assert difference(got[name], want[name]) < 1e-10, name


def test_members_from_one_backward(model, runtime, atoms):
    """Forces of member m = those of a one-member model with its weights; their mean = the
    plain request.
    """
    graph = graph_of(atoms)
    got = predict(runtime, graph, members=True)
    for m in range(model.n_members):
        alone = RACE(
            model.config.model_copy(update={"n_members": 1}), model.constants, torch.float64
        )
        alone.load_state_dict(
            {
                **model.state_dict(),
                **{name: weight[m : m + 1] for name, weight in model.named_parameters()},
            }
        )
        want = eager(alone, graph)
        assert difference(got["forces"][:, m : m + 1], want["forces"]) < 1e-10
        assert difference(got["virial"][m : m + 1], want["virial"]) < 1e-10
        # Members do differ
        assert difference(got["forces"][:, 1 - m : 2 - m], want["forces"]) > 1e-3
    mean = predict(runtime, graph)
    assert difference(mean["forces"][:, 0], got["forces"].mean(1)) < 1e-10
    assert difference(mean["virial"][0], got["virial"].mean(0)) < 1e-10


def with_images(frame):
    """The frame's graph with each periodic image a ghost, and the ghosts' owners."""
    (domain,), _ = domains_of(frame, np.zeros(len(frame), dtype=np.int64), 1)
    return domain[:4], domain[5]


def test_folded_equals_ghosts(runtime, atoms):
    arguments, owner = with_images(atoms)
    n = len(atoms)
    request = dict(members=True, uncertainty=True, atom_virial=True)
    want = runtime.predict(*folded(graph_of(atoms)), **request)

    def fold(rows):
        return rows[:n].index_add(0, owner, rows[n:])

    got = runtime.predict(*arguments, owner, **request)
    for name in ("forces", "atom_virial"):
        assert difference(fold(got[name]), want[name]) < 1e-10, name
    for name in ("node_energy", "virial", "node_energy_var", "cov_aleatoric"):
        assert difference(got[name], want[name]) < 1e-10, name
    # Ghosts that read the wrong owner are seen.
    wrong = runtime.predict(*arguments, owner.roll(1), **request)
    assert difference(wrong["node_energy"], want["node_energy"]) > 1e-6
    assert difference(fold(wrong["forces"]), want["forces"]) > 1e-6


def test_virial_is_the_strain_derivative(runtime, atoms):
    step, got = 1e-4, runtime.predict(*folded(graph_of(atoms)))["virial"].view(3, 3)

    def energy(a, b, sign):
        strain = np.eye(3)
        strain[a, b] += sign * step
        strained = atoms.copy()
        strained.set_cell(atoms.cell @ strain.T, scale_atoms=True)
        return float(runtime.predict(*folded(graph_of(strained)))["node_energy"].mean(1).sum())

    want = torch.tensor(
        [[-(energy(a, b, 1) - energy(a, b, -1)) / (2 * step) for b in range(3)] for a in range(3)]
    )
    assert difference(got, want) < 1e-6
    assert difference(got, got.T) < 1e-10
    assert difference(-got, want) > 1e-3


def test_atom_virials(runtime, atoms):
    out = runtime.predict(*folded(graph_of(atoms)), members=True, atom_virial=True)
    assert difference(out["atom_virial"].sum(0), out["virial"].mean(0)) < 1e-10
    # In a dimer the one bond is shared by halves, along the bond.
    dimer = triclinic()[:2]
    dimer.set_pbc(False)
    dimer.positions = [[0, 0, 0], [1.4, 0, 0]]
    out = runtime.predict(*folded(graph_of(dimer)), atom_virial=True)
    want = torch.zeros(2, 9, dtype=torch.float64)
    want[:, 0] = 0.5 * (out["forces"][1, 0, 0] * 1.4)
    assert difference(out["atom_virial"], want) < 1e-10
    assert float(want[0, 0].abs()) > 1e-3


@pytest.mark.parametrize("members", [False, True])
def test_no_atoms_and_no_edges(members, runtime, atoms):
    request = dict(members=members, uncertainty=True, atom_virial=True)
    empty = [
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 3, dtype=torch.float64),
        torch.zeros(0, dtype=torch.int64),
    ]
    out = runtime.predict(*empty, torch.zeros(1, dtype=torch.int64), **request)
    assert (
        out["node_energy"].shape == (0, 2)
        and out["forces"].shape[0] == 0
        and not out["virial"].any()
    )
    out = runtime.predict(
        torch.tensor([0, 1]), empty[1], empty[2], torch.zeros(3, dtype=torch.int64), **request
    )
    assert not out["forces"].any() and torch.isfinite(out["cov_aleatoric"]).all()
    far = atoms[:2].copy()
    far.set_pbc(False)
    far.positions[1] += 20
    assert (
        difference(out["node_energy"], runtime.predict(*folded(graph_of(far)))["node_energy"])
        < 1e-12
    )


def test_leaves_the_callers_modes_alone(runtime, atoms):
    want = predict(runtime, graph_of(atoms), members=True)
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            got = predict(runtime, graph_of(atoms), members=True)
            assert not torch.is_grad_enabled() and torch.is_inference_mode_enabled() == (
                guard is torch.inference_mode
            )
        assert difference(got["forces"], want["forces"]) < 1e-12
    assert torch._C._get_graph_executor_optimize() is True
    assert not want["forces"].requires_grad


def test_repeats_to_the_bit(runtime, atoms):
    first, second = (predict(runtime, graph_of(atoms), members=True) for _ in range(2))
    assert torch.equal(first["forces"], second["forces"])


@pytest.mark.parametrize(
    "position, change, message",
    [
        (0, lambda t: t + 2, "species"),
        (1, lambda t: t.float(), "edge_vector"),
        (2, lambda t: t + 10_000, "sender"),
        (2, lambda t: t[:-1], "edge_vector"),
        (3, lambda t: t.flip(0), "row_ptr"),
    ],
)
def test_bad_graphs_are_refused(position, change, message, runtime, atoms):
    arguments = list(folded(graph_of(atoms)))
    arguments[position] = change(arguments[position])
    with pytest.raises(RaceError, match=f"graph: {message}; expected"):
        runtime.predict(*arguments)


def test_member_covariance():
    forces = torch.randn(5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = race._race.member_covariance(forces).numpy()
    for atom, columns in zip(forces.numpy(), got, strict=True):
        want = np.cov(atom.T, bias=True)[SIX_ROWS, SIX_COLUMNS]
        np.testing.assert_allclose(columns, want, rtol=0, atol=1e-14)
        # The population form, not the sample's
        assert np.abs(columns - np.cov(atom.T)[SIX_ROWS, SIX_COLUMNS]).max() > 1e-3
