"""The benchmarks' bookkeeping: ratios, targets, the page made of records, workers and their
failures. Nothing is timed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import race._race
import torch
from e3nn import o3

import race
from race.conventions import matrix_from_six
from race.model.irreps import conv_paths
from race.model.reference import Reference

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import chart  # noqa: E402
import in_lammps  # noqa: E402
import kernels  # noqa: E402
import pages  # noqa: E402
import protocol  # noqa: E402
import provenance  # noqa: E402
import race_models  # noqa: E402
import race_worker  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import roofline  # noqa: E402
import systems  # noqa: E402
import timer  # noqa: E402
from contests import ENERGY, ENSEMBLE, MEAN, STEP  # noqa: E402


def record(
    model: str = "RACE", us: float | None = 10.0, rounds: tuple[float, ...] | None = None, **changes
) -> dict:
    fields = {
        "contest": "inference",
        "system": "Si-512",
        "n_atoms": 512,
        "edges_per_atom": 28.0,
        "model": model,
        "size": "small",
        "architecture": "2 layers",
        "parameters": 1,
        "members": 1,
        "outputs": ENERGY,
        "dtype": "float32",
        "threads": 1,
        "us_per_atom": us,
        "us_per_atom_rounds": list(rounds or (us,)),
        "cpu_us_per_atom": us,
        "calls": 5,
        "timed": "a call",
        "versions": {"torch": "2"},
        "machine": "a processor, 2 cores",
        "date": "2026-01-01T00:00Z",
    }
    return fields | changes


def verdict(records: list[dict], text: str) -> str:
    """The row of the page's table of targets that begins with `text`."""
    return next(line for line in drawn(records).splitlines() if line.startswith(f"| {text}"))


def drawn(records: list[dict]) -> str:
    return report.page(report.PAGE.read_text(), records)


FASTER = "one member, energy and forces: faster than NequIP AOTInductor"


def test_only_the_marked_parts_of_a_page_are_drawn():
    page = "by hand\n<!-- a -->\nold\n<!-- end -->\nby hand too\n<!-- b -->\n<!-- end -->\n"
    assert pages.fill(page, {"a": ["new", "lines"]}) == page.replace("old", "new\nlines")
    with pytest.raises(ValueError, match="0 places <!-- c -->"):
        pages.fill(page, {"c": []})


def test_processor_is_named_with_family_and_vector_width(monkeypatch):
    fields = {
        "vendor_id": "AuthenticAMD",
        "cpu family": "25",
        "model": "17",
        "model name": "AMD EPYC",
        "flags": "sse2 fma avx2 avx512f",
    }
    monkeypatch.setattr(provenance, "cpuinfo", lambda: fields)
    name = provenance.processor()
    assert name.startswith("AMD EPYC (family 25 model 17, Zen 4, avx2 fma avx512f (in halves of")
    fields |= {"cpu family": "26", "model": "36"}
    assert "Zen 5" not in provenance.processor() and "family 26 model 36" in provenance.processor()
    fields["model"] = "2"
    assert "Zen 5, avx2 fma avx512f (512 bits wide)" in provenance.processor()


def test_timer_repeats_and_takes_the_middle():
    turns = iter([0.0, 0.001, 0.03, 0.001, *[0.001] * 100])
    calls = []

    def call():
        calls.append(0)
        end = time.thread_time() + next(turns)
        while time.thread_time() < end:
            pass

    torch.set_num_threads(1)
    assert 0.0009 < timer.seconds_per_call(call, 0.0) < 0.02 and len(calls) == 4


def test_ratio_pairs_rounds():
    """A disturbance that slows both codes in one round does not show."""
    slow, fast = record(us=30.0, rounds=(20.0, 60.0, 30.0)), record(us=2.0, rounds=(2.0, 6.0, 2.0))
    assert results.ratio(slow, fast) == 10.0
    assert results.ratio(slow, None) is None


@pytest.mark.parametrize(
    ("us", "expected"),
    [(101.0, "10.1 x | met"), (100.0, "10.0 x | met"), (99.0, "9.90 x | **missed**")],
)
def test_target_at_least(us, expected):
    assert expected in verdict([record(), record(report.AOT, us)], FASTER)


def test_target_at_most():
    records = [
        record(outputs=MEAN, members=8, us=100.0),
        record(outputs=ENSEMBLE, members=8, us=104.0),
    ]
    text = "8 members: covariances and every member's forces on top of mean forces"
    assert "4.0 % | met" in verdict(records, text)
    records[1] = record(outputs=ENSEMBLE, members=8, us=106.0)
    assert "6.0 % | **missed**" in verdict(records, text)


def test_what_was_not_measured_is_not_judged():
    omitted = record(report.AOT, None, omitted="one call takes 12 s")
    page = drawn([record(), omitted])
    assert "- | not measured" in verdict([record(), omitted], FASTER)
    assert "omitted: one call takes 12 s" in page


def test_other_settings_do_not_enter_a_target():
    others = [
        record(dtype="float64", us=1.0),
        record(threads=2, us=1.0),
        record(system="water", us=1.0),
        record(report.AOT, 200.0, threads=2),
    ]
    assert "10.0 x | met" in verdict([record(), record(report.AOT, 100.0), *others], FASTER)


def test_two_records_of_one_setting_are_refused():
    with pytest.raises(ValueError, match="2 records"):
        drawn([record(), record()])


def test_chart_is_drawn(tmp_path):
    records = [record(), record(report.AOT, 100.0)]
    training = {"contest": "training", "outputs": STEP, "system": "3BPA x 5"}
    records += [
        record(model, configurations_per_second=50.0, **training)
        for model in ("RACE", "NequIP compiled")
    ]
    chart.draw(records, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_journal_goes_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "BUILD", tmp_path)
    journal = results.Journal("x")
    journal.add([record()], "a", 1)
    journal.add([record(us=2.0)], "b", 2)
    journal.path.write_text(journal.path.read_text()[:-20])  # killed while writing the second
    again = results.Journal("x")
    assert again.done("a", 1) and not again.done("b", 2)
    again.finish(tmp_path / "all.json")
    assert [r["us_per_atom"] for r in json.loads((tmp_path / "all.json").read_text())] == [10.0]
    assert not results.Journal("x").groups


LAMMPS_OUTPUT = """
Loop time of 9.99 on 1 procs for 10 steps with 512 atoms
12.0% CPU use with 1 MPI tasks x 1 OpenMP threads
Loop time of 0.5 on 2 procs for 20 steps with 512 atoms
99.5% CPU use with 2 MPI tasks x 1 OpenMP threads
MPI task timing breakdown:
Section |  min time  |  avg time  |  max time  |%varavg| %total
---------------------------------------------------------------
Pair    | 0.40       | 0.45       | 0.46       |   0.0 | 90.00
Comm    | 0.01       | 0.02       | 0.03       |   0.0 |  4.00
Other   |            | 0.03       |            |       |  6.00
"""


def test_lammps_timing_is_that_of_the_last_run():
    assert in_lammps.read_timing(LAMMPS_OUTPUT) == {
        "Loop": 0.5,
        "cpu_percent": 99.5,
        "Pair": 0.45,
        "Comm": 0.02,
        "Other": 0.03,
    }


WORKER = f"""
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from protocol import Prepared, serve
print("noise of a library")
def prepare(path, outputs):
    if outputs == "broken":
        raise ValueError("no such output\\nand a long explanation")
    if outputs == "deadly":
        raise SystemExit(3)
    return Prepared(lambda: bytearray(50_000_000), n_atoms=7, n_edges=9)
serve(prepare, {{"versions": {{}}}})
"""


def test_worker_answers(tmp_path):
    worker = protocol.Worker([sys.executable, "-c", WORKER], 1, tmp_path / "log")
    assert worker.hello == {"versions": {}}
    assert worker.ask("load", "x.npz", "forces")["n_atoms"] == 7
    timed = worker.ask("time", "x.npz", "forces", seconds=0.0)
    assert len(timed["wall"]) == 1 and timed["cpu"] >= 0
    assert 49_000_000 <= worker.ask("memory", "x.npz", "forces")["bytes"] < 60_000_000
    with pytest.raises(protocol.WorkerError, match="^ValueError: no such output$"):
        worker.ask("load", "x.npz", "broken")
    with pytest.raises(protocol.WorkerError, match=rf"status 3.*{tmp_path}"):
        worker.ask("load", "x.npz", "deadly")
    worker.close()
    assert "noise of a library" in (tmp_path / "log").read_text()


@pytest.fixture
def tiny(monkeypatch) -> str:
    sizes = {
        "n_features": 4,
        "radial_mlp": [8],
        "readout_hidden": 8,
        "irreps_hidden": "4x0e+4x1o",
        "lmax": 1,
        "radial_knots": 384,
    }
    monkeypatch.setitem(race_models.SIZES, "tiny", race_models.SIZES["small"] | sizes)
    return "tiny"


@pytest.mark.parametrize("members", [1, 3])
def test_what_is_timed_is_what_a_user_gets(tiny, members, tmp_path):
    """The timed call returns the covariances of race.Calculator on the same artifact."""
    path = race_models.artifact(tmp_path, tiny, members, "cholesky", "float64")
    for name in ("3BPA", "Si-64"):
        graph = systems.write(tmp_path / f"{name}.npz", name)
        prepared = race_worker.deployed(race._race.load(str(path)), str(graph), "covariance")
        atoms = systems.structure(name)
        atoms.calc = race.Calculator(path)
        expected = atoms.calc.get_property("forces_cov", atoms)
        assert (
            np.abs(matrix_from_six(prepared.call().numpy()) - expected).max()
            < 1e-10 * np.abs(expected).max()
        )
        assert (prepared.n_atoms, prepared.n_edges) == (
            len(atoms),
            len(systems.graph(atoms)["sender"]),
        )


def test_reference_is_the_same_function(tiny, tmp_path):
    """The unfolded form, given the weights, has the forces of the deployed model."""
    options = argparse.Namespace(model=tiny, members=1, head="point", dtype="float64")
    graph = systems.write(tmp_path / "x.npz", "Si-64")
    model = race_models.build(tiny, dtype="float64")
    unfolded = Reference(race_models.config(tiny)).double().load_member(model, 0)
    (gradient,) = race_worker.reference(unfolded, str(graph), torch.float64).call()
    loaded = race._race.load(str(race_models.artifact(tmp_path, options.model, dtype="float64")))
    forces = race_worker.deployed(loaded, str(graph), "forces").call()["forces"][:, 0]
    # The table of the radial weights, where the other evaluates the MLP.
    assert (forces + gradient).abs().max() < 1e-5 * forces.abs().max()


@pytest.mark.parametrize("train", [race_worker.training, race_worker.reference_training])
def test_training_steps_run(tiny, train):
    options = argparse.Namespace(model=tiny, members=1, head="point", dtype="float32")
    prepared = train(options, 2)
    assert (prepared.n_atoms, prepared.frames) == (54, 2)
    prepared.call()
    prepared.call()


def test_water_box_is_as_dense_as_it_says():
    graph = systems.graph(systems.water())
    assert len(graph["sender"]) / len(graph["numbers"]) == pytest.approx(
        systems.WATER_EDGES_PER_ATOM, rel=0.05
    )


def test_flops_of_the_convolution():
    """Scalars times scalars: the radial weight, then the only coefficient; vectors from
    scalars: three of each.
    """
    hidden = o3.Irreps("8x0e")
    counts = roofline.conv_counts(conv_paths(hidden, 0, hidden, 1), 1, 5, 20, 4, (8, 16, 1))
    assert counts["forward"][0] == 20 * 2 * 8 * (2 + 1)  # two paths: g itself and g times Y_0
    paths = conv_paths(hidden, 1, o3.Irreps("8x1o"), 1)
    assert roofline.conv_counts(paths, 1, 5, 20, 4, (8, 24, 4))["forward"][0] == 20 * 8 * (
        2 * 3 + 1
    )


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_fused_and_twin_are_timed_on_the_same_function(name):
    case = next(iter(kernels.CASES[name](torch.float64)))
    for fused, twin in zip(case.fused, case.twin, strict=True):
        ours, theirs = fused(), twin()
        if isinstance(ours, torch.Tensor):
            ours, theirs = [ours], [theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= 1e-9 * b.abs().max()


@pytest.mark.skipif(not results.FINAL.exists(), reason="make bench has not been run yet")
def test_committed_results():
    """results/cpu.json has the fields that it promises; the page and its verdicts are those
    of these results.
    """
    records = json.loads(results.FINAL.read_text())
    for one in records:
        assert set(results.REQUIRED) <= one.keys()
        assert one["us_per_atom"] is None or one["us_per_atom"] > 0
        assert one["us_per_atom"] is not None or one["omitted"]
    assert {"RACE", "NequIP AOTInductor", "NequIP TorchScript", "MACE compiled"} <= {
        one["model"] for one in records
    }
    assert report.PAGE.read_text() == drawn(records)
