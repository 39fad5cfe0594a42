"""The runtime on CUDA's kernels, compiled for the CPU: a whole prediction, and how many
kernels it launches.
"""

import pytest
import race._race
import torch

from race.deploy.export import export_model
from tests.deploy.conftest import triclinic
from tests.deploy.test_step import FREE, model_of, periodic

from .test_cuda_on_cpu import library
from .test_operators_on_cpu import emulated

assert library  # loaded there, or this file is skipped with it
LIMIT = 40  # launches of a step of 2 layers and 3 species, without uncertainties
VIEWS = {
    *("view", "slice", "narrow", "select", "unsqueeze", "squeeze", "expand", "transpose", "t"),
    *("permute", "as_strided", "reshape", "flatten", "unflatten", "alias", "split"),
    *("split_with_sizes", "_reshape_alias", "resolve_conj", "resolve_neg", "resize_"),
}


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
        elif name != event.name and name not in VIEWS | FREE:
            count += event.input_shapes != [[0]]
    return count


def test_launches_of_a_step(tmp_path):
    """Of the second step on the same neighbours, as between two times that they change."""
    model, arguments = load(tmp_path), periodic(triclinic())
    with emulated():
        model.predict(*arguments)
        before = torch.ops.race_on_cpu.launches()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model.predict(*arguments)
        own = torch.ops.race_on_cpu.launches() - before
    roots = [event for event in profile.events() if event.cpu_parent is None]
    stock = of_torch(roots)
    print(f"{own} kernels of RACE, {stock} of torch")
    assert own + stock <= LIMIT
