"""Damaged, foreign, tampered and mistaken artifacts: each one clear line. And the self-test,
which must be able to fail.
"""

import hashlib
import io
import json
import random
import signal
import zipfile
from contextlib import nullcontext

import pytest
import race._race
import torch

from race.cli import main
from race.config import BaselineOptions, DataConfig, RunConfig
from race.deploy.artifact import FORMAT_VERSION, TRAILER, read_metadata, seal, to_json
from race.deploy.command_export import read_calibration
from race.deploy.export import export_model, fold, metadata_of, script
from race.deploy.selftest import make_selftest
from race.errors import RaceError
from race.train.run import write_config, write_summary
from tests.deploy.conftest import make_model


def refusal(path, **options) -> str:
    """The message with which both doors refuse a file."""
    with pytest.raises(RaceError) as error:
        race._race.load(str(path), **options)
    message = str(error.value)
    assert "\n" not in message and str(path) in message and len(message) < 400
    return message


@pytest.mark.parametrize("size", [0, 1, 3, 64, 1024, 88])
def test_sha256(size):
    data = random.Random(size).randbytes(size)
    assert race._race.sha256(data) == hashlib.sha256(data).hexdigest()


def test_sha256_at_every_padding():
    for size in range(130):
        assert race._race.sha256(b"a" * size) == hashlib.sha256(b"a" * size).hexdigest()


def test_trailer_is_a_zip_comment(artifact):
    body = artifact.read_bytes()
    with zipfile.ZipFile(artifact) as archive:
        assert archive.testzip() is None
        assert archive.comment == body[-len(archive.comment) :]
        assert archive.comment.decode() == TRAILER + hashlib.sha256(body[:-64]).hexdigest()
    torch.jit.load(str(artifact))  # plain TorchScript reads it too


def test_bit_flips(artifact, tmp_path):
    body, rng = artifact.read_bytes(), random.Random(0)
    places = (
        [rng.randrange(len(body)) for _ in range(25)]
        + list(range(len(body) - 110, len(body)))
        + [0, 1, 2, 3]
    )
    for place in places:
        damaged = bytearray(body)
        damaged[place] ^= 1 << rng.randrange(8)
        (tmp_path / "x.race.pt").write_bytes(damaged)
        refusal(tmp_path / "x.race.pt")


def test_truncation(artifact, tmp_path):
    body = artifact.read_bytes()
    for kept in (1, 10, len(body) // 2, len(body) - 100, len(body) - 64, len(body) - 1):
        (tmp_path / "x.race.pt").write_bytes(body[:kept])
        message = refusal(tmp_path / "x.race.pt")
        assert "truncated" in message or "not a RACE artifact" in message
    (tmp_path / "x.race.pt").write_bytes(body + b"\n")
    assert "damaged" in refusal(tmp_path / "x.race.pt")


def test_other_kinds_of_files(tmp_path):
    path = tmp_path / "x.race.pt"
    assert "cannot open" in refusal(path)
    path.write_bytes(b"")
    assert "empty file" in refusal(path)
    path.write_text("pair_style race\n")
    assert "not a zip archive" in refusal(path)
    torch.save({"weights": torch.zeros(3)}, path)
    assert "no race-artifact trailer" in refusal(path)
    assert "race export" in refusal(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "b")
    path.write_bytes(seal(buffer.getvalue()))  # sealed, but no model
    assert "torch cannot load" in refusal(path)
    assert "cannot" in refusal(tmp_path)  # a folder


def test_another_version(artifact, tmp_path):
    other = FORMAT_VERSION - 1
    body = artifact.read_bytes().replace(
        f"race-artifact/{FORMAT_VERSION} ".encode(), f"race-artifact/{other} ".encode()
    )
    (tmp_path / "x.race.pt").write_bytes(
        body[:-64] + hashlib.sha256(body[:-64]).hexdigest().encode()
    )
    expected = f"format 'race-artifact/{other}'; this librace reads race-artifact/{FORMAT_VERSION}"
    assert expected in refusal(tmp_path / "x.race.pt")


def test_pinned_sha256(artifact):
    digest = race._race.load(str(artifact)).sha256
    race._race.load(str(artifact), sha256=digest[:12].upper())
    assert "another artifact than requested" in refusal(artifact, sha256="0" * 64)
    assert "8 to 64 hex digits" in refusal(artifact, sha256=digest[:7])


def test_device_and_dtype(artifact):
    with pytest.raises(RaceError, match="float32 or float64, got float16"):
        race._race.load(str(artifact), dtype="float16")
    with pytest.raises(RaceError, match="cpu, cuda or cuda:N, got gpu"):
        race._race.load(str(artifact), "gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_missing_device(artifact):
    assert "cannot prepare the model on cuda" in refusal(artifact, device="cuda")


def build(path, model, spoil_weights=lambda deployed: None, spoil_metadata=None):
    """An artifact whose weights or metadata are spoilt after its self-test was recorded."""
    deployed, keep = fold(model, torch.float64)
    selftest = make_selftest(deployed, model)
    spoil_weights(deployed)
    metadata = metadata_of(model, "float64", False, keep, {}, {})
    extra = {
        "metadata.json": to_json({**metadata, **(spoil_metadata or {})}),
        "selftest.json": to_json(selftest),
    }
    path.write_bytes(seal(script(deployed, extra)))
    return path


@pytest.mark.parametrize(
    "weight",
    ["layers.0.radial.weights.1", "layers.1.chain.weight", "layers.2.second", "atomic_energies"],
)
def test_selftest_finds_a_wrong_weight(weight, model, tmp_path):
    """In float64 one weight off by 1 %, in float32 a whole tensor; no checksum tells, since
    it was sealed so.
    """

    def spoil(deployed, one):
        tensor = dict([*deployed.named_parameters(), *deployed.named_buffers()])[weight].flatten()
        tensor[tensor.abs().argmax() if one else slice(None)] *= 1.01

    for dtype in ("float64", "float32"):
        path = build(
            tmp_path / f"{dtype}.race.pt",
            model,
            lambda deployed, one=dtype == "float64": spoil(deployed, one),
        )
        message = refusal(path, dtype=dtype)
        assert "self-test failed" in message and dtype in message
    race._race.load(str(path), selftest=False)
    race._race.load(str(build(path, model)), dtype="float32")


def test_an_operator_that_refuses_is_one_line_not_a_crash(model, tmp_path):
    """An exception inside a compiled segment, whose call stack the interpreter then looks up."""

    def spoil(deployed):
        deployed.layers[1].dim_mid = 7

    message = refusal(build(tmp_path / "x.race.pt", model, spoil))
    assert (
        "does not run on cpu" in message
        and "expected a block inside dim_out = 7" in message
        and "\n" not in message
    )


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("format", 7, "race-artifact/7"),
        ("r_max", "5", "r_max: expected a number"),
        ("elements", [], "inconsistent metadata"),
        ("halo_widths", [4], "inconsistent metadata"),
        ("n_trunks", 3, "inconsistent metadata"),
        ("dtype", "float16", "expected float32 or float64"),
    ],
)
def test_bad_metadata(field, value, message, model, tmp_path):
    assert message in refusal(build(tmp_path / "x.race.pt", model, spoil_metadata={field: value}))


@pytest.mark.parametrize("knots, least, most", [(0, 0.0, 0.0), (384, 1e-12, 1e-6), (16, 1e-4, 1.0)])
def test_metadata_says_what_the_table_does_to_forces(knots, least, most, tmp_path):
    path = tmp_path / "x.race.pt"
    export_model(make_model(radial_knots=knots), path)
    table = read_metadata(path)[0]["radial_table"]
    assert table["knots"] == knots and least <= table["force_error"] <= most


def test_metrics_that_a_head_does_not_give(model, tmp_path):
    """NaN in a summary: members of head `energy` have no force deviation."""
    validation = {"validation/forces_rmse": 20.0, "validation/forces_std/member_0": float("nan")}
    export_model(model, tmp_path / "x.race.pt", summary={"validation": validation})
    assert read_metadata(tmp_path / "x.race.pt")[0]["validation"] == {
        "validation/forces_rmse": 20.0
    }


def test_export_keeps_what_was_there_when_it_fails(model, tmp_path):
    mean = make_model(pooling="mean", head="energy", energy_aggregation="paper")
    with pytest.raises(RaceError, match="variance is of a sum"):
        export_model(mean, tmp_path / "x.race.pt")
    with pytest.raises(RaceError, match="no such folder"):
        export_model(model, tmp_path / "missing" / "x.race.pt")
    (tmp_path / "x.race.pt").write_text("old")
    broken = make_model()
    with torch.no_grad():
        broken.layers[0].readout.w1[0, 0, 0] = float("nan")
    with pytest.raises(RaceError, match="not finite"):
        export_model(broken, tmp_path / "x.race.pt")
    assert (tmp_path / "x.race.pt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.race.pt"]


@pytest.fixture
def run_folder(model, tmp_path):
    """What `race train` leaves, as far as `race export` reads it."""
    from safetensors.torch import save_file

    run = tmp_path / "run"
    run.mkdir()
    config = RunConfig(
        data=DataConfig(train=["train.extxyz"]), model=model.config, constants=model.constants
    )
    config.train.dtype = "float64"
    write_config(run, config)
    save_file(
        {name: weight.detach().contiguous() for name, weight in model.named_parameters()},
        run / "model.safetensors",
    )
    training = {
        "n_frames": 12,
        "n_atoms_per_frame": [8, 16],
        "elements": ["B", "N"],
        "min_distance": {"B-B": 1.7, "B-N": 1.21, "N-N": 1.8},
        "per_element": {
            "B": {"n_atoms": 70, "force_rms": 1.5, "force_max": 9.5},
            "N": {"n_atoms": 70, "force_rms": 1.4, "force_max": 8.1},
        },
    }
    versions = {"git": "0123456789abcdef", "torch": torch.__version__, "race": "0"}
    # A head without force uncertainty has NaN there.
    validation = {"validation/forces_rmse": 31.5, "validation/forces_std": float("nan")}
    write_summary(run, {"training": training, "versions": versions, "validation": validation})
    return run


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_an_interrupt_waits_for_the_compiler(handler, model, tmp_path, monkeypatch):
    """Raised inside of it, the compiler would say that an attribute is missing."""
    compiled, compile_ = [], torch.jit.script

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGINT)
        compiled.append(compile_(*args, **options))
        return compiled[-1]

    monkeypatch.setattr(torch.jit, "script", interrupted)
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt) if handler != signal.SIG_IGN else nullcontext():
            export_model(model, tmp_path / "new.race.pt")
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert compiled
    assert any(tmp_path.iterdir()) == (handler == signal.SIG_IGN)


def test_commands(run_folder, artifact, tmp_path, capsys):
    path = tmp_path / "x.race.pt"
    calibration = tmp_path / "calibration.json"
    calibration.write_text('{"covariance_scale": 1.25, "forces": {"method": "isotonic"}}')
    assert (
        main(
            [
                "export",
                str(run_folder),
                "-o",
                str(path),
                "--dtype",
                "float32",
                "--calibration",
                str(calibration),
            ]
        )
        == 0
    )
    digest = race._race.load(str(path)).sha256
    assert digest in capsys.readouterr().out
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    for text in (
        digest,
        "B N",
        "3.2 A",
        "2 (ensemble)",
        "equivariant",
        "float32",
        "B-N 1.21 A",
        "largest 9.5 eV/A",
        "commit 0123456789",
        "force_std_scale 1.25",
        "128 knots, as trained, forces within",
    ):
        assert text in out
    metadata, _ = read_metadata(path)
    assert metadata["training"]["max_force"] == {"B": 9.5, "N": 8.1}
    assert metadata["validation"] == {"validation/forces_rmse": 31.5}
    assert json.loads(race._race.load(str(path)).metadata) == metadata

    for text in ("[]", '{"intervals": [1]}', '{"intervals": {"energy": [1.0]}}'):
        calibration.write_text(text)
        words = ["export", str(run_folder), "-o", str(path), "--calibration", str(calibration)]
        assert main(words) == 2
        assert f"{calibration}: is no calibration; expected" in capsys.readouterr().err
    calibration.write_text('{"covariance_scale": 2}')  # as JSON may have it
    assert read_calibration(calibration)[0] == {"force_std_scale": 2}
    calibration.write_text('{"covariance_scale": null}')
    assert (
        main(["export", str(run_folder), "-o", str(path), "--calibration", str(calibration)]) == 2
    )
    assert "no factor for the force or energy uncertainty" in capsys.readouterr().err
    assert main(["export", str(run_folder), "-o", str(tmp_path / "x.pt")]) == 2
    assert "expected NAME.race.pt" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-200])
    assert main(["info", str(path)]) == 2
    assert "truncated" in capsys.readouterr().err


def test_a_leader_on_another_baseline_is_refused(tmp_path):
    """LAMMPS adds one baseline, whoever leads."""
    baseline = BaselineOptions(calculator="ase.calculators.emt.EMT")
    plain = make_model(n_members=1)
    on_top = make_model(n_members=1)
    on_top.constants = on_top.constants.model_copy(update={"baseline": baseline})
    for model, leader in ((plain, on_top), (on_top, plain)):
        with pytest.raises(RaceError, match="leader distilled adds to another baseline; expected"):
            export_model(model, tmp_path / "x.race.pt", leaders={"distilled": leader})
    assert not any(tmp_path.iterdir())
