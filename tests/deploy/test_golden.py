"""Artifacts of earlier releases run in this one: tests/deploy/golden holds small ones with what
they predicted when they were made.

`python -m tests.deploy.test_golden NAME` adds one of CASES; a file that is there is never
made again.
"""

import json
import sys
import zipfile
from pathlib import Path, PurePath

import ase
import numpy as np
import pytest
import race._race
import torch

import race
from race.config import BaselineOptions
from race.data.graph import build_graph
from race.deploy.artifact import FORMAT_VERSION, read_metadata, seal
from race.deploy.export import alone, export_model
from race.errors import RaceError
from race.model.race import RACE
from tests.deploy.conftest import (
    ELEMENTS,
    R_MAX,
    folded,
    graph_of,
    make_model,
    readouts_on,
    triclinic,
)

FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.name.removesuffix(".race.pt") for path in FOLDER.glob("*.race.pt"))
TOLERANCE = 1e-9  # relative to the largest of each quantity, float64

# By release: what the artifact is there for
SMALL = dict(irreps_hidden="4x0e+2x0o+4x1o+2x1e+3x2e", n_features=4, radial_knots=48, n_layers=2)
TINY = SMALL | dict(irreps_hidden="2x0e+2x1o+2x2e", n_features=2, radial_knots=16, readout_hidden=4)
CASES = {
    "format4_ensemble": dict(model=SMALL | dict(stress_head="equivariant")),
    "format4_readouts": dict(model=SMALL | dict(n_members=1, head="evidential"), readouts=3),
    "format4_portable": dict(model=SMALL | dict(head="cholesky", radial_knots=0), portable=True),
    "format4_point": dict(model=SMALL | dict(n_members=1, head="point"), dtype="float32"),
    "format4_spread": dict(model=SMALL | dict(n_members=3), spread=(1.5, 2.0)),
    "format4_products": dict(model=TINY | dict(correlation=3, gate=True, bessel_decay=1.0)),
    "format4_leaders": dict(model=TINY | dict(n_members=2), leaders=True),
    "format4_baseline": dict(
        model=TINY | dict(n_members=1),
        constants={
            "energy_shift": -4.5,
            "baseline": BaselineOptions(
                calculator="ase.calculators.lj.LennardJones",
                arguments={"sigma": 1.2, "epsilon": 0.3, "rc": 3.0},
            ),
        },
    ),
}


def predictions(path: Path) -> dict[str, np.ndarray]:
    """Of the model, of each leader that it carries, and with the baseline added."""
    frame = triclinic((2, 2, 1))
    with zipfile.ZipFile(path) as archive:
        names = [PurePath(name) for name in archive.namelist()]
    out = predicted(race._race.load(str(path), dtype="float64"), frame)
    for name in sorted(name.name for name in names if name.parent.name == "leaders"):
        leader = race._race.load(str(path), dtype="float64", lead=name)
        out |= {f"lead {name}:{key}": value for key, value in predicted(leader, frame).items()}
    calculator = race.Calculator(path, dtype="float64")
    if calculator.baseline is not None:
        calculator.calculate(frame)
        out |= {f"sum:{key}": calculator.results[key] for key in ("energy", "forces", "stress")}
    return out


def predicted(runtime: race._race.Model, frame: ase.Atoms) -> dict[str, np.ndarray]:
    velocity = np.random.default_rng(3).normal(size=(len(frame), 3))
    out = runtime.predict(
        *folded(graph_of(frame)),
        members=True,
        uncertainty=True,
        atom_virial=True,
        velocity=torch.from_numpy(velocity),
    )
    rows = runtime.quantities(*folded(graph_of(frame)))
    out |= {f"{'atom' if each else 'frame'}:{name}": row for (name, each), row in rows.items()}
    return {name: value.numpy() for name, value in out.items()}


def compare(name: str, spoil=lambda wanted: wanted) -> dict[str, float]:
    """Largest difference of every recorded quantity, relative to its largest value."""
    with np.load(FOLDER / f"{name}.npz") as file:
        wanted = spoil({key: file[key] for key in file})
    got = predictions(FOLDER / f"{name}.race.pt")
    return {
        key: float(np.abs(got[key] - value).max() / max(np.abs(value).max(), 1e-12))
        for key, value in wanted.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_runs_as_when_it_was_made(name):
    differences = compare(name)
    assert "forces" in differences and max(differences.values()) < TOLERANCE, differences


def test_they_have_what_they_are_there_for():
    def recorded(name: str) -> tuple[dict, dict[str, np.ndarray]]:
        with np.load(FOLDER / f"{name}.npz") as file:
            return read_metadata(FOLDER / f"{name}.race.pt")[0], {key: file[key] for key in file}

    options = recorded("format4_products")[0]["model"]
    assert (options["correlation"], options["gate"], options["bessel_decay"]) == (3, True, 1.0)
    leaders = recorded("format4_leaders")[1]
    whole, first, distilled = (
        leaders[f"{name}forces"] for name in ("", "lead 1:", "lead distilled:")
    )
    assert whole.shape[1:] == (2, 3) and first.shape == distilled.shape
    assert np.abs(first[:, 0] - whole[:, 0]).max() < 1e-9 < np.abs(first - distilled).max()
    about, values = recorded("format4_baseline")
    assert about["baseline"]["calculator"] == "ase.calculators.lj.LennardJones"
    assert about["constants"]["energy_shift"] == -4.5
    assert abs(values["sum:energy"] - values["node_energy"].sum()) > 0.1
    assert values["node_energy"].max() < -1  # E0 are -3 and 2 eV


def test_another_model_is_seen():
    """A reference that is off by 1e-8 of its largest value."""
    differences = compare(
        NAMES[0], lambda wanted: {k: v + 1e-8 * np.abs(v).max() for k, v in wanted.items()}
    )
    with np.load(FOLDER / f"{NAMES[0]}.npz") as file:
        assert all(differences[key] > TOLERANCE for key in file if file[key].any())


def test_the_format_has_its_golden_artifacts():
    """A new format is not released without them."""
    formats = {
        int(path.read_bytes().rsplit(b"race-artifact/", 1)[1].split(b" ")[0])
        for path in FOLDER.glob("*.race.pt")
    }
    assert FORMAT_VERSION in formats


@pytest.mark.parametrize(
    "version, said", [(FORMAT_VERSION + 1, "update race"), (3, "export the model again")]
)
def test_other_formats(version, said, tmp_path):
    """Of a later release, and of before the first."""
    data = (FOLDER / f"{NAMES[0]}.race.pt").read_bytes()
    body, _, _ = data.rpartition(b"race-artifact/")
    archive = body[:-2] + b"\0\0"
    here = f"race-artifact/{FORMAT_VERSION} ".encode()
    other = f"race-artifact/{version} ".encode()
    path = tmp_path / "other.race.pt"
    path.write_bytes(seal(archive).replace(here, other))
    with pytest.raises(RaceError, match=said):
        race._race.load(str(path))


def make(name: str) -> None:
    case = CASES[name]
    path = FOLDER / f"{name}.race.pt"
    assert not path.exists(), f"{path} is there; golden artifacts are never made again"
    FOLDER.mkdir(exist_ok=True)
    model = make_model(seed=11, **case["model"])
    if "constants" in case:
        constants = model.constants.model_copy(update=case["constants"])
        twin = RACE(model.config, constants, torch.float64)
        twin.load_state_dict(dict(model.named_parameters()), strict=False)
        model = twin
    leaders = {"1": alone(model)["1"]} if case.get("leaders") else {}
    if leaders:
        leaders["distilled"] = make_model(seed=12, **TINY, n_members=1, head="evidential")
    if "readouts" in case:
        model = readouts_on(model, case["readouts"])
    model.scale_spread(*case.get("spread", (1.0, 1.0)))
    frame = triclinic((2, 2, 1))
    batch = build_graph(frame, ELEMENTS, R_MAX, torch.float64)
    training = {"min_distance": {"B-B": 1.9, "B-N": 1.2, "N-N": 1.9}, "cutoff": R_MAX}
    export_model(
        model,
        path,
        portable=case.get("portable", False),
        dtype=case.get("dtype"),
        summary={"training": training},
        calibration={"force_std_scale": 1.25},
        leaders=leaders,
        training_set=[batch],
    )
    np.savez_compressed(FOLDER / f"{name}.npz", **predictions(path))
    with zipfile.ZipFile(path) as archive:
        (metadata,) = [n for n in archive.namelist() if n.endswith("metadata.json")]
        print(name, path.stat().st_size, json.loads(archive.read(metadata))["torch_version"])


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
