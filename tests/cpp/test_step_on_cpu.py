"""The runtime on CUDA's kernels, compiled for the CPU: a whole prediction, and how many
kernels it launches.
"""

import pytest
import race._race
import torch

from race.deploy.export import export_model
from race.predict.artifact import ArtifactPredictor
from race.presets import preset
from tests.deploy.conftest import triclinic
from tests.deploy.test_step import FREE, model_of, periodic, request_of

from .test_cuda_on_cpu import emulated, library

assert library  # loaded there, or this file is skipped with it
# Launches of a step of 2 layers and 3 species: kernels of RACE, and what they and the runtime ask
# of torch, from edge vectors on the device to forces, energies and covariances there.
LAUNCHES = {"point": 37, "small": 55, "small, eight members": 74}
# Operators of torch that wait for the device, and those inside them
READS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "unique_dim", "_unique2"}
# "to" calls others where it copies
VIEWS = {"to", "view", "slice", "narrow", "select", "unsqueeze", "squeeze", "expand", "as_strided"}


def load(folder, **changes):
    export_model(model_of(**changes), folder / "model.race.pt")
    return race._race.load(str(folder / "model.race.pt"), dtype="float64")


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(n_members=2, head="equivariant"),
        dict(n_members=2, head="evidential", correlation=3),
        dict(head="eip"),
        dict(head="cholesky", irreps_hidden="33x0e+5x1o+8x2e"),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "point",
)
def test_prediction(changes, tmp_path):
    """Energies, forces, virials, covariances, with ghosts and in parts of receivers."""
    model, arguments = load(tmp_path, **changes), periodic(triclinic())
    request = dict(members=True, uncertainty=True, atom_virial=True)
    for n_parts in (1, 3):
        expected = model.predict(*arguments, n_parts=n_parts, **request)
        with emulated():
            found = model.predict(*arguments, n_parts=n_parts, **request)
            again = model.predict(*arguments, n_parts=n_parts, **request)
        assert found.keys() == expected.keys() and expected["forces"].abs().max() > 0.1
        for name, values in expected.items():
            scale = float(values.abs().max().clamp_min(1.0))
            assert float((found[name] - values).abs().max()) < 1e-11 * scale, name
            assert torch.equal(found[name], again[name]), name


def of_torch(events) -> int:
    """Operators of torch that launch something: those that call no other, but for views and
    allocations.
    """
    count = 0
    for event in events:
        name = event.name.removeprefix("aten::")
        if event.cpu_children:
            count += of_torch(event.cpu_children)
        elif event.name.startswith("aten::"):
            count += name not in VIEWS | FREE
    return count


def counted(step) -> tuple[int, int]:
    """Launches of a step and reads of the device by it."""
    run = torch.ops.race_on_cpu
    kernels, reads = run.launches(), run.reads()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    kernels, reads = run.launches() - kernels, run.reads() - reads
    events = profile.events()
    top = [event for event in events if event.cpu_parent is None]
    waits = [event for event in events if event.name.removeprefix("aten::") in READS]
    return kernels + of_torch(top), reads + len(waits)


def kept_step(model, seed, kept, **request):
    """predict() at other positions, on neighbours and ghosts that are kept."""
    topology, vector, owner = kept
    vector = vector + 0.01 * torch.randn(
        vector.shape, dtype=vector.dtype, generator=torch.Generator().manual_seed(seed)
    )
    return lambda: model.predict(topology, vector, owner, on_device=True, **request)


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_and_reads_of_a_step(name, tmp_path):
    """Of predict() at other positions each time: as many at each step, nothing read, and
    nothing uploaded.
    """
    n_members = 8 if "eight" in name else 1
    changes = {} if name == "point" else dict(preset("small"), n_members=n_members, head="cholesky")
    model, request = load(tmp_path, **changes), request_of(n_members)
    species, vector, sender, row_ptr, owner = periodic(triclinic())
    kept = race._race.Topology(model, species, sender, row_ptr), vector, owner
    with emulated():
        kept_step(model, 0, kept, **request)()
        uploads = torch.ops.race_on_cpu.uploads()
        found = [counted(kept_step(model, seed, kept, **request)) for seed in (1, 2, 3)]
    assert len(set(found)) == 1 and found[0][0] <= LAUNCHES[name] and found[0][1] == 0, found
    assert torch.ops.race_on_cpu.uploads() == uploads


def test_a_recording_holds_what_kernels_remember(tmp_path):
    """Sorted edges, atoms by species, tables: a replay reads them after others were put in
    their place.
    """
    run, model = torch.ops.race_on_cpu, load(tmp_path, n_members=2, head="cholesky", correlation=2)
    species, vector, sender, row_ptr, owner = periodic(triclinic())
    kept = race._race.Topology(model, species, sender, row_ptr), vector, owner
    with emulated():
        kept_step(model, 0, kept)()
        run.hold(True)
        kept_step(model, 1, kept)()
        n_held = run.hold(False)
        kept_step(model, 2, kept)()
        assert run.hold(False) == 0
    assert n_held > 20


def test_new_tensors_are_seen(tmp_path):
    """What a caller pays who makes the graph's tensors anew: sorting, and a read."""
    model, (species, vector, sender, row_ptr, owner) = load(tmp_path), periodic(triclinic())
    kept = race._race.Topology(model, species, sender, row_ptr), vector, owner
    with emulated():
        kept_step(model, 0, kept)()
        expected = counted(kept_step(model, 1, kept))
        again = race._race.Topology(model, species, sender, row_ptr), vector, owner.clone()
        found = counted(kept_step(model, 1, again))
    assert found[0] > expected[0] + 5 and found[1] > 0


def test_kept_neighbours(tmp_path):
    """A calculator's, on CUDA's kernels: those beyond the cutoff have no part in anything."""
    export_model(model_of(n_members=2, head="cholesky"), tmp_path / "model.race.pt")
    make = lambda skin: ArtifactPredictor(tmp_path / "model.race.pt", dtype="float64", skin=skin)  # noqa: E731
    atoms, keeping, fresh = triclinic(), make(0.6), make(0.0)
    for seed in range(3):
        atoms.rattle(0.02, seed=seed)
        expected = fresh.members(atoms)
        with emulated():
            found = keeping.members(atoms)
        for name in ("node_energy", "forces", "stress", "aleatoric"):
            a, b = getattr(found, name), getattr(expected, name)
            assert float((a - b).abs().max()) < 1e-11 * float(b.abs().max().clamp_min(1.0)), name
