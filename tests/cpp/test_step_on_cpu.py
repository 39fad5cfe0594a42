"""The runtime on CUDA's kernels, compiled for the CPU: a whole prediction, and how many
kernels it launches.
"""

import pytest
import race._race
import torch

from race.deploy.export import export_model
from race.presets import preset
from tests.deploy.conftest import triclinic
from tests.deploy.test_step import FREE, model_of, periodic, request_of

from .test_cuda_on_cpu import emulated, library

assert library  # loaded there, or this file is skipped with it
# Of a step of 2 layers and 3 species: kernels that operators of RACE launch, and what they ask of
# torch (sums of parts, where atoms are few). tests/deploy/test_step.py counts what is asked of
# torch outside of them: 11 for "point", 14 for "small", which makes 40 and 57 launches.
COUNTS = {"point": (24, 5), "small": (36, 7), "small, eight members": (38, 7)}
VIEWS = {"view", "slice", "narrow", "select", "unsqueeze", "squeeze", "expand", "as_strided"}


def load(folder, **changes):
    export_model(model_of(**changes), folder / "model.race.pt")
    return race._race.load(str(folder / "model.race.pt"), dtype="float64")


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(n_members=2, head="equivariant"),
        dict(n_members=2, head="evidential", correlation=3),
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
        else:
            count += name not in VIEWS | FREE
    return count


@pytest.mark.parametrize("name", COUNTS)
def test_launches_of_a_step(name, tmp_path):
    """Of the second step on the same neighbours, as between two times that they change."""
    n_members = 8 if "eight" in name else 1
    changes = {} if name == "point" else dict(preset("small"), n_members=n_members, head="cholesky")
    model, arguments = load(tmp_path, **changes), periodic(triclinic())
    request = request_of(n_members)
    with emulated():
        model.predict(*arguments, **request)
        before = torch.ops.race_on_cpu.launches()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model.predict(*arguments, **request)
        kernels = torch.ops.race_on_cpu.launches() - before
    ours = [event for event in profile.events() if event.name.startswith("race::")]
    inside = sum(of_torch(event.cpu_children) for event in ours)
    assert kernels <= COUNTS[name][0] and inside <= COUNTS[name][1], (kernels, inside)
