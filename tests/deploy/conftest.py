"""Structures, exported models, and what cuts a periodic structure into domains."""

import ase.build
import numpy as np
import pytest
import race._race
import torch

from race.config import ModelConfig
from race.data.graph import Batch, build_graph
from race.deploy.export import export_model
from race.model.layer import is_last_layer
from race.model.race import RACE
from race.posterior.protocol import assigned_members, model_of

ELEMENTS = ["B", "N"]
R_MAX = 3.2


def make_model(dtype=torch.float64, seed=0, **changes) -> RACE:
    torch.manual_seed(seed)
    options = dict(
        elements=ELEMENTS,
        r_max=R_MAX,
        n_layers=3,
        irreps_hidden="8x0e+4x0o+8x1o+4x1e+6x2e",
        lmax=2,
        n_features=8,
        n_members=2,
        avg_num_neighbors=12.0,
        readout_hidden=16,
        radial_mlp=[16],
        atomic_energies=[-3.0, 2.0],
        scale=[0.7, 1.3],
    )
    return RACE.untrained(ModelConfig(**{**options, **changes}), dtype)


def readouts_on(run: RACE, n_members: int) -> RACE:
    """Members assigned in turn to those of a model, each with readouts of its own."""
    members = assigned_members(n_members, run.n_members)
    model = model_of(run, {name: p.detach()[members] for name, p in run.named_parameters()})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if is_last_layer(name):
                p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def unshared(model: RACE) -> RACE:
    """The same but for the last bit of one weight of every trunk: nothing is shared any more."""
    twin = RACE(model.config, model.constants, torch.float64)
    twin.load_state_dict(model.state_dict())
    weight = twin.layers[0].linear_down.weight.data
    for m in range(model.n_members):
        for _ in range(m):
            weight[m, 0] = torch.nextafter(
                weight[m, 0], torch.tensor(torch.inf, dtype=torch.float64)
            )
    return twin


def triclinic(repeat=(2, 2, 1)):
    """BN, 16 atoms, sheared and rattled: thinner than two cutoffs, so atoms see several
    images of each other.
    """
    frame = ase.build.bulk("BN", "zincblende", a=3.6, cubic=False).repeat(repeat)
    frame.set_cell(
        frame.cell @ (np.eye(3) + 0.05 * np.array([[0, 1, 0], [0, 0, 0.5], [0.3, 0, 0]])),
        scale_atoms=True,
    )
    frame.rattle(0.1, seed=1)
    return frame


def numeric_force(energy, atoms, atom: int, axis: int, h: float) -> float:
    """-dE/dx of one component by central differences of `energy(atoms)`, steps of h
    Angstrom; eV/A.
    """
    sides = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[atom, axis] += sign * h
        sides.append(energy(moved))
    return -(sides[0] - sides[1]) / (2 * h)


def numeric_stress(energy, atoms, h: float) -> np.ndarray:
    """[6] eV/A^3 in ASE's Voigt order, by central differences of `energy(atoms)` along
    symmetric strains of h.
    """
    stress = []
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        sides = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * h / 2
            strain[b, a] += sign * h / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            sides.append(energy(strained))
        stress.append((sides[0] - sides[1]) / (2 * h) / atoms.get_volume())
    return np.array(stress)


def graph_of(frame, dtype=torch.float64) -> Batch:
    return build_graph(frame, ELEMENTS, R_MAX, dtype)


@pytest.fixture
def atoms():
    return triclinic()


@pytest.fixture(scope="session")
def model() -> RACE:
    return make_model()


@pytest.fixture(scope="session")
def artifact(model, tmp_path_factory):
    """The float64 artifact of `model`."""
    path = tmp_path_factory.mktemp("artifact") / "bn.race.pt"
    export_model(model, path)
    return path


@pytest.fixture(scope="session")
def runtime(artifact):
    return race._race.load(str(artifact))


def folded(graph: Batch) -> tuple:
    """Arguments of predict() without ghosts."""
    return graph.species, graph.edge_vector.double(), graph.edge_index[0], graph.row_ptr


def domains_of(frame, domain: np.ndarray, n_domains: int) -> tuple[list[tuple], list[np.ndarray]]:
    """A periodic frame cut into domains with one-cutoff ghost shells, ghosts being (atom,
    image) pairs.

    domain [n_atoms]: the owner of each atom. Returns the domains as predict_domains takes
    them, and the atoms each owns.
    """
    graph = graph_of(frame)
    sender, receiver = graph.edge_index.numpy()
    shift = np.rint(
        (graph.edge_vector.numpy() - frame.positions[sender] + frame.positions[receiver])
        @ np.linalg.inv(frame.cell)
    ).astype(int)
    owned = [np.flatnonzero(domain == rank) for rank in range(n_domains)]
    row = np.zeros(len(frame), dtype=np.int64)
    for rows in owned:
        row[rows] = np.arange(len(rows))
    species = graph.species.numpy()
    domains = []
    for rank, rows in enumerate(owned):
        edges = np.flatnonzero(domain[receiver] == rank)
        ghosts: dict[tuple, int] = {}
        local = np.zeros(len(edges), dtype=np.int64)
        for k, e in enumerate(edges):
            if domain[sender[e]] == rank and not shift[e].any():
                local[k] = row[sender[e]]
            else:
                local[k] = len(rows) + ghosts.setdefault((sender[e], *shift[e]), len(ghosts))
        originals = np.array([key[0] for key in ghosts], dtype=np.int64)
        row_ptr = np.concatenate(
            [[0], np.cumsum(np.bincount(row[receiver[edges]], minlength=len(rows)))]
        ).astype(np.int64)
        parts = (
            species[np.concatenate([rows, originals])],
            graph.edge_vector.numpy()[edges],
            local,
            row_ptr,
            domain[originals],
            row[originals],
        )
        domains.append(tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))
    return domains, owned


def eager(model: RACE, graph: Batch) -> dict[str, torch.Tensor]:
    """What predict() with members should give, from the Python model; virial [M, 6] in
    SIX_ORDER.
    """
    result = model(graph)
    with torch.no_grad():
        raw = result.raw
        out = torch.cat([raw[..., :1], raw[..., 1:] * model.n_layers], dim=-1)
        energy_var, aleatoric, epistemic = model.moments(out)
    return {
        "node_energy": result.node_energy.detach(),
        "forces": result.forces.detach(),
        "virial": -result.stress[0].detach() * graph.volume,
        "node_energy_var": energy_var,
        "cov_aleatoric": aleatoric.mean(1),
        "cov_epistemic": epistemic.mean(1),
        "virial_cov": result.virial_cov[0].detach().mean(0)
        if model.has_stress_cov
        else torch.zeros(6, 6, dtype=torch.float64),
    }


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference relative to the largest value (at least 1)."""
    assert got.shape == want.shape
    return float((got.double() - want.double()).abs().max() / max(1.0, float(want.abs().max())))
