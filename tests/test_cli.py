"""The command itself: how it ends, whatever a user or a shell does."""

import logging
import os
import subprocess
import sys

import pytest

from race import cli
from race.cli import main


def command(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "race", *arguments], env=environment, text=True, **options
    )


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("race 0.")


def test_a_reader_that_leaves_does_not_end_the_work(tmp_path, monkeypatch):
    """Of stdout and stderr: what is left to do is done, and the status is 0."""
    read, write = os.pipe()
    os.close(read)
    code = "from race.cli import outlive_readers\nimport sys\n"
    code += "with outlive_readers():\n for k in range(9):\n  print(k, flush=True)\n"
    code += "  print(k, file=sys.stderr, flush=True)\nopen(sys.argv[1], 'w').write('done')"
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], stdout=write, stderr=write
    )
    os.close(write)
    assert process.returncode == 0 and (tmp_path / "x").read_text() == "done"


def test_interruption_is_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "race train: interrupted\n"


def test_errors_of_the_file_system_are_one_line(monkeypatch, capsys):
    def full(argv):
        raise OSError(28, "No space left on device", "x.json")

    monkeypatch.setattr(cli, "_run", full)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "race info: x.json: No space left on device\n"


def test_messages_of_the_library(monkeypatch, capsys):
    def talk(argv):
        logging.getLogger("race.train").info("said")
        logging.getLogger("race.data").warning("doubted")

    monkeypatch.setattr(cli, "_run", talk)
    assert main([]) == 0 and main([]) == 0  # one handler at a time
    captured = capsys.readouterr()
    assert captured.out == "said\n" * 2 and captured.err == "warning: doubted\n" * 2
