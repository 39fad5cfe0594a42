"""`race lmp` and `race plugin`: an environment's LAMMPS finds the plugin without being told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from race.cli import main
from race.deploy import launch
from race.errors import RaceError

# A shell without what `source activate` and an export of LD_LIBRARY_PATH would have set.
BARE = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
INPUT = "info styles pair\nprint 'ranks $(extract_setting(world_size))'\n"


def race(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "race", *arguments],
        env=BARE,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_lammps_has_the_pair_style_without_any_setting(tmp_path, ranks):
    (tmp_path / "in.styles").write_text(INPUT)
    done = race(
        "lmp",
        "--ranks",
        str(ranks),
        "-in",
        "in.styles",
        "-log",
        "none",
        "-nocite",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "race " in done.stdout.replace("\n", " ") and f"ranks {ranks}" in done.stdout


def test_the_exit_status_is_that_of_lammps(tmp_path):
    (tmp_path / "in.wrong").write_text("pair_style nonsense\n")
    assert race("lmp", "-in", "in.wrong", "-log", "none", folder=tmp_path).returncode not in (0, 2)


def test_plugin_is_printed(capsys):
    assert main(["plugin"]) == 0
    assert Path(capsys.readouterr().out.strip()).samefile(launch.plugin_path())
    assert main(["plugin", "--env"]) == 0
    lines = capsys.readouterr().out
    shown = subprocess.run(
        ["bash", "-c", f"{lines} echo $LAMMPS_PLUGIN_PATH"], capture_output=True, text=True
    )
    assert str(launch.plugin_path().parent) in shown.stdout


def test_what_is_missing_is_said(monkeypatch, capsys, tmp_path):
    assert main(["lmp", "--ranks", "0"]) == 2
    assert "--ranks: out of range" in capsys.readouterr().err
    assert main(["lmp", "--lmp", str(tmp_path / "lmp")]) == 2
    assert "is not installed" in capsys.readouterr().err
    monkeypatch.setattr(launch, "PLUGIN", "other.so")
    with pytest.raises(RaceError, match="no other.so.*install a wheel that has it"):
        launch.plugin_path()
