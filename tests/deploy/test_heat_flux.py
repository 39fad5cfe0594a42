"""The heat flux of moving atoms against d/dt sum_i r_i e_i, by central differences in time."""

import numpy as np
import pytest
import race._race
import torch

from race.deploy.export import export_model
from tests.deploy.conftest import (
    difference,
    domains_of,
    folded,
    graph_of,
    make_model,
    readouts_on,
    triclinic,
)


def cluster():
    """In vacuum, 16 atoms."""
    frame = triclinic((2, 2, 2))
    frame.pbc = False
    return frame


def velocities(frame) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(len(frame), 3))


def energies(runtime, frame) -> np.ndarray:
    return runtime.predict(*folded(graph_of(frame)))["node_energy"].numpy()  # [n, M]


def exact(runtime, frame, velocity, h=1e-5) -> np.ndarray:
    """[M, 3]: d/dt sum_i r_i E_i + sum_i r_i (F_i . v_i), the last the rate of the kinetic
    energy.
    """
    moments = []
    for sign in (1, -1):
        moved = frame.copy()
        moved.positions += sign * h * velocity
        moments.append(np.einsum("nm,na->ma", energies(runtime, moved), moved.positions))
    forces = runtime.predict(*folded(graph_of(frame)), members=True)["forces"].numpy()  # [n, M, 3]
    power = np.einsum("nma,na->nm", forces, velocity)
    return (moments[0] - moments[1]) / (2 * h) + np.einsum("nm,na->ma", power, frame.positions)


CASES = {
    "one layer": dict(n_layers=1),
    "two layers": dict(n_layers=2),
    "three layers": {},
    "without a table": dict(n_layers=2, radial_knots=0),
    "products with a gate": dict(n_layers=2, correlation=3, gate=True),
}


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux")

    def load(name, **changes):
        path = folder / f"{name}.race.pt"
        if not path.exists():
            portable = changes.pop("portable", False)
            model = make_model(**changes) if name != "readouts" else readouts_on(make_model(), 6)
            export_model(model, path, portable=portable)
        return race._race.load(str(path))

    return load


@pytest.mark.parametrize("case", [*CASES, "portable", "readouts"])
def test_is_the_rate_of_the_energy_moment(case, runtimes):
    runtime = runtimes(
        case.replace(" ", "_") if case != "readouts" else case,
        **CASES.get(case, {"portable": True} if case == "portable" else {}),
    )
    frame = cluster()
    velocity = velocities(frame)
    want = exact(runtime, frame, velocity)
    arguments = dict(velocity=torch.from_numpy(velocity))
    got = runtime.predict(*folded(graph_of(frame)), members=True, **arguments)["heat_flux"].numpy()
    assert got.shape == want.shape and len(want) > 1
    scale = np.abs(want).max()
    assert np.abs(got - want).max() < 1e-6 * scale
    mean = runtime.predict(*folded(graph_of(frame)), **arguments)["heat_flux"].numpy()
    assert np.abs(mean[0] - want.mean(0)).max() < 1e-6 * scale
    # What an edge's ends share evenly is not it
    virial = runtime.predict(*folded(graph_of(frame)), atom_virial=True)["atom_virial"]
    rows = virial[: len(frame)].numpy().reshape(-1, 3, 3)
    shared = np.einsum("nm,na->ma", energies(runtime, frame), velocity).mean(0)
    shared += np.einsum("nab,nb->a", rows, velocity)
    wrong = np.abs(shared - want.mean(0)).max() / scale
    assert wrong < 1e-6 if case == "one layer" else wrong > 1e-2


@pytest.mark.parametrize("n_parts", [3])
def test_in_parts_and_domains(n_parts, runtimes):
    """A periodic structure, in parts and on eight domains, one of them empty."""
    runtime, frame = runtimes("three_layers"), triclinic((2, 2, 2))
    velocity = velocities(frame)
    arguments = dict(members=True)
    whole = folded(graph_of(frame))
    want = runtime.predict(*whole, velocity=torch.from_numpy(velocity), **arguments)["heat_flux"]
    parts = runtime.predict(
        *whole, velocity=torch.from_numpy(velocity), n_parts=n_parts, **arguments
    )["heat_flux"]
    assert difference(parts, want) < 1e-10
    domain = np.arange(len(frame)) % 7
    domains, owned = domains_of(frame, domain, 8)
    several = runtime.predict_domains(
        domains, velocities=[torch.from_numpy(velocity[rows]) for rows in owned], **arguments
    )
    assert difference(sum(part["heat_flux"] for part in several), want) < 1e-10
    # Velocities of ghosts matter: without them it is another flux
    still = runtime.predict_domains(
        domains, velocities=[torch.zeros(len(rows), 3).double() for rows in owned], **arguments
    )
    assert difference(sum(part["heat_flux"] for part in still), want) > 1e-2


def test_a_model_at_rest_and_one_that_drifts(runtimes):
    """Nothing moves, nothing flows; all atoms moving alike carry the energy and the virial."""
    runtime, frame = runtimes("two_layers", n_layers=2), cluster()
    whole = folded(graph_of(frame))
    flux = lambda v: runtime.predict(*whole, velocity=v)["heat_flux"][0]  # noqa: E731
    n = len(frame)
    assert flux(torch.zeros(n, 3).double()).abs().max() == 0
    drift = torch.tensor([0.3, -1.0, 0.4]).double()
    out = runtime.predict(*whole)
    want = out["node_energy"].mean(1).sum() * drift + out["virial"].mean(0).view(3, 3) @ drift
    assert difference(flux(drift.expand(n, 3).contiguous()), want) < 1e-12
