"""The bookkeeping of benchmarks/scaling: LAMMPS's breakdown as it is read, the fit, the
projection made of it. Nothing is timed.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "scaling"))

import gpu_model  # noqa: E402
import projection  # noqa: E402
import times  # noqa: E402

OUTPUT = """
Loop time of 0.5 on 2 procs for 5 steps with 64 atoms

Section |  min time  |  avg time  |  max time  |%varavg| %total
---------------------------------------------------------------
Pair    | 0.3        | 0.4        | 0.5        |   0.1 | 80.00
Neigh   | 0          | 0          | 0          |   0.0 |  0.00
Comm    | 1e-02      | 5e-02      | 9e-02      |   0.1 | 10.00
Output  | 2.6e-05    | 2.7e-05    | 2.8e-05    |   0.0 |  0.01
Modify  | 4.2e-05    | 4.3e-05    | 4.4e-05    |   0.0 |  0.01
Other   |            | 4.9e-02    |            |       |  9.98

Loop time of 2 on 1 procs for 10 steps with 64 atoms
Pair    | 1.9        | 1.9        | 1.9        |   0.0 | 95.00
Other   |            | 0.1        |            |       |  5.00
"""


def test_breakdown():
    first, second = times.breakdowns(OUTPUT)
    assert first == pytest.approx(
        {
            "step": 0.1,
            "Pair": 0.08,
            "Neigh": 0,
            "Comm": 0.01,
            "Output": 5.4e-6,
            "Modify": 8.6e-6,
            "Other": 9.8e-3,
        }
    )
    assert second == pytest.approx({"step": 0.2, "Pair": 0.19, "Other": 0.01})


def cases(a: float, b: float, c: float) -> list[dict]:
    sizes = ((216, 1500, 1), (512, 2300, 1), (1024, 3300, 1), (256, 1900, 2), (512, 2600, 2))
    return [
        {
            "n_owned": n,
            "n_ghost": g,
            "n_atoms": n * r,
            "ranks": r,
            "seconds_per_step": a * n + b * g + c,
            "exchange": 1e-3,
            "comm_share": 0.2,
            "breakdown": {"Comm": 1e-3},
        }
        for n, g, r in sizes
    ]


def test_fit_and_table():
    records = cases(3e-5, 2e-6, 1e-4)
    fitted = times.fit(records)
    assert list(fitted.values()) == pytest.approx([3e-5, 2e-6, 1e-4, 0], rel=1e-6, abs=1e-9)
    assert times.fit(cases(3e-5, -1e-6, 0))["per_ghost"] == 0
    about = {"machine": "a machine", "date": "a day", "versions": {}, "fit": fitted}
    page = "\n".join(times.table(records, about))
    seconds = [record["seconds_per_step"] for record in records]
    strong, weak = seconds[1] / 2 / seconds[3], seconds[1] / seconds[4]
    assert (
        f"{strong:.0%} strong" in page
        and f"{weak:.0%} weak" in page
        and "30.00 us per owned atom, 2.000 us per ghost, 0.100 ms" in page
    )


def test_projection_takes_the_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(projection, "TIMES", tmp_path / "times.json")

    def share(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["projection.py", *arguments])
        projection.main()
        return capsys.readouterr().out

    assert share() == share("--seconds-per-atom", "1e-6") and "assumed" in share()
    (tmp_path / "times.json").write_text(
        json.dumps({"about": {"machine": "M", "fit": times.fit(cases(3e-5, 2e-6, 1e-4))}})
    )
    assert "30 us per atom, 2 us per ghost, 0.1 ms per step, measured on a core of: M" in share()
    # 10,000 atoms: 9,038 ghosts, 35.3 MiB at 20 GB/s against 10,000 a + 9,038 b + c
    assert "| 10,000 | 9,038 | 40,724 | 35.3 | 1% |" in share() and "16% |" in share(
        "--seconds-per-atom", "1e-6"
    )


def test_step_of_a_gpu_by_the_model():
    """Launches decide a small step, work a large one; what halves a ceiling slows a step."""
    device = gpu_model.DEVICES["H200"]
    small, large = (gpu_model.step("small", 1, device, n, "plain") for n in (64, 1e6))
    launches = gpu_model.LAUNCHES[1] * gpu_model.LAUNCH["plain"]
    assert launches < small < 1.2 * launches and large > 100 * launches
    slower = replace(device, cache=device.cache / 2)
    assert gpu_model.step("small", 1, slower, 1e6, "plain") > 1.3 * large
    assert gpu_model.step("small", 8, device, 1e6, "plain") > 7 * large


def test_table_of_the_gpu_model_is_its_own():
    """The figures that README.md quotes are those of the program as it is."""
    text = (Path(gpu_model.__file__).parent / "README.md").read_text()
    columns = [gpu_model.DEVICES[name] for name in ("H200", "A100")]
    for members, label in ((1, "1 member, 100,000 atoms"), (8, "8 members, each")):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {label}"))
        quoted = [float(cell) for cell in row.split("|")[3:5]]
        found = [gpu_model.step("small", members, d, 1e5, "plain") / 1e5 * 1e6 for d in columns]
        assert quoted == pytest.approx(found, rel=0.03)
