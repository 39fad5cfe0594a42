"""Fills the tables of benchmarks/README.md from results/cpu.json: targets met or missed,
then every measurement. No figure comes from elsewhere.

python benchmarks/report.py
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from contests import COVARIANCE, ENERGY, ENSEMBLE, LED, MEAN, PAPER, STEP
from pages import fill, table
from results import FINAL, find, ratio

PAGE = Path(__file__).with_name("README.md")
AOT, JIT, MACE, REFERENCE = (
    "NequIP AOTInductor",
    "NequIP TorchScript",
    "MACE compiled",
    "RACE, unfolded e3nn",
)
Records = list[dict]


@dataclass(frozen=True)
class Target:
    """A quantity and the value that it must reach; `at_least` or at most."""

    text: str
    value: Callable[[Records], float | None]
    goal: float
    unit: str = "x"
    at_least: bool = True

    def row(self, records: Records) -> list[str]:
        measured = self.value(records)
        sign = ">=" if self.at_least else "<="
        goal = f"{sign} {show(self.goal, self.unit)}"
        if measured is None:
            return [self.text, goal, "-", "not measured"]
        met = measured >= self.goal if self.at_least else measured <= self.goal
        return [self.text, goal, show(measured, self.unit), "met" if met else "**missed**"]


def show(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.1f} %"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def one(
    records: Records,
    model: str = "RACE",
    outputs: str = ENERGY,
    contest: str = "inference",
    **fields: object,
) -> dict | None:
    """A record of the headline setting (small model, Si-512, float32, one thread), or of
    what `fields` changes in it.
    """
    setting = {
        "system": "Si-512",
        "size": "small",
        "members": 1,
        "dtype": "float32",
        "threads": 1,
    } | fields
    return find(records, model=model, outputs=outputs, contest=contest, **setting)


def trained(records: Records, model: str, n: int, **fields: object) -> dict | None:
    return one(records, model, STEP, "training", system=f"3BPA x {n}", **fields)


def quotient(a: dict | None, b: dict | None, field: str) -> float | None:
    return a[field] / b[field] if a and b and a.get(field) and b.get(field) else None


def excess(a: dict | None, b: dict | None) -> float | None:
    """Extra time of `a` over `b`, as a part of b."""
    both = ratio(a, b)
    return None if both is None else both - 1.0


def lammps(records: Records, field: str, **fields: object) -> float | None:
    record = find(
        records,
        **(
            {"contest": "LAMMPS", "outputs": ENERGY, "dtype": "float32", "ranks": 1, "threads": 1}
            | fields
        ),
    )
    return record[field] if record else None


def lead_cost(records: Records) -> float | None:
    """Time of dynamics with a leading member over that of a model of one member."""
    alone = lammps(records, "us_per_atom")
    led = lammps(records, "us_per_atom", outputs=LED, members=8)
    return led / alone if alone and led else None


def ranks_gain(records: Records) -> float | None:
    alone, both = lammps(records, "us_per_atom"), lammps(records, "us_per_atom", ranks=2)
    return alone / both if alone and both else None


def best_of_two(records: Records) -> float | None:
    """Gain of a second core, as a thread (inference) or as a rank (LAMMPS), whichever is larger."""
    gains = [quotient(one(records), one(records, threads=2), "us_per_atom"), ranks_gain(records)]
    return max((gain for gain in gains if gain is not None), default=None)


def kernel_share(records: Records) -> float | None:
    record = find(records, contest="shares", members=1)
    return record["kernels"] + record["matrix_products"] if record else None


def overhead(records: Records) -> float | None:
    part = lammps(records, "pair_fraction")
    return None if part is None else 1.0 - part


def latency(records: Records) -> float | None:
    record = one(records, contest="latency", system="Si-64")
    return record["us_per_atom"] * record["n_atoms"] / 1e3 if record else None


def paper(records: Records, model: str = "RACE") -> dict | None:
    return one(records, model, COVARIANCE, system="3BPA", size=PAPER)


def slope(records: Records, n: int | None) -> float | None:
    """Time of eight members over that of one: inference of the mean, or training on n frames."""
    if n is None:
        return ratio(one(records, outputs=MEAN, members=8), one(records, outputs=MEAN))
    return ratio(trained(records, "RACE", n, members=8), trained(records, "RACE", n))


TARGETS = (
    Target(
        "one member, energy and forces: faster than NequIP AOTInductor",
        lambda r: ratio(one(r, AOT), one(r)),
        10,
    ),
    Target("the same: faster than NequIP TorchScript", lambda r: ratio(one(r, JIT), one(r)), 20),
    Target(
        "the same: time per atom",
        lambda r: (one(r) or {}).get("us_per_atom"),
        15,
        "us",
        at_least=False,
    ),
    Target("the same: gain of a second thread or rank", best_of_two, 1.8),
    Target(
        "8 members, every member's forces and the 3x3 covariance of every atom: time over that of "
        "one NequIP AOTInductor model",
        lambda r: ratio(one(r, outputs=ENSEMBLE, members=8), one(r, AOT)),
        1,
        at_least=False,
    ),
    Target(
        "8 members: covariances and every member's forces on top of mean forces",
        lambda r: excess(one(r, outputs=ENSEMBLE, members=8), one(r, outputs=MEAN, members=8)),
        0.05,
        "%",
        at_least=False,
    ),
    Target(
        "8 members in LAMMPS, one leads, uncertainties every 100 steps: time over that of one",
        lead_cost,
        1.1,
        at_least=False,
    ),
    Target(
        "1 member: covariances on top of forces",
        lambda r: excess(one(r, outputs=COVARIANCE), one(r, outputs=MEAN)),
        0.05,
        "%",
        at_least=False,
    ),
    Target(
        "3BPA configuration of the paper: faster than its unfolded e3nn form",
        lambda r: ratio(paper(r, REFERENCE), paper(r)),
        5,
    ),
    Target(
        "the same, training at the paper's batch of 2: faster",
        lambda r: ratio(trained(r, REFERENCE, 2, size=PAPER), trained(r, "RACE", 2, size=PAPER)),
        5,
    ),
    Target(
        "the same: peak memory over that of the unfolded form",
        lambda r: quotient(paper(r), paper(r, REFERENCE), "bytes_per_atom"),
        0.2,
        at_least=False,
    ),
    Target(
        "the same, training: peak memory",
        lambda r: quotient(
            trained(r, "RACE", 2, size=PAPER),
            trained(r, REFERENCE, 2, size=PAPER),
            "bytes_per_atom",
        ),
        0.2,
        at_least=False,
    ),
    *(
        target
        for n in (5, 16)
        for target in (
            Target(
                f"training on 3BPA, batch {n}: faster than compiled NequIP",
                lambda r, n=n: ratio(trained(r, "NequIP compiled", n), trained(r, "RACE", n)),
                3,
            ),
            Target(
                f"training on 3BPA, batch {n}: faster than compiled MACE",
                lambda r, n=n: ratio(trained(r, MACE, n), trained(r, "RACE", n)),
                20,
            ),
            Target(
                f"training on 3BPA, batch {n}: 8 members over one",
                lambda r, n=n: slope(r, n),
                5,
                at_least=False,
            ),
        )
    ),
    Target(
        "inference: 8 members over one (mean forces)", lambda r: slope(r, None), 5, at_least=False
    ),
    Target("64 atoms: time of a step", latency, 1, "ms", at_least=False),
    Target(
        "Si-4096: part of a prediction spent in kernels and matrix products", kernel_share, 0.9, "%"
    ),
    Target(
        "LAMMPS, Si-4096: part of a step outside the pair style", overhead, 0.1, "%", at_least=False
    ),
)


def memory(record: dict) -> str:
    return f"{record['bytes_per_atom'] / 1024:.1f}" if record.get("bytes_per_atom") else ""


def speed_row(record: dict, *last: str) -> list[object]:
    fields = ("system", "model", "size", "members", "outputs", "dtype", "threads")
    us = record["us_per_atom"]
    time = f"omitted: {record['omitted']}" if us is None else f"{us:.2f}"
    return [*(record[name] for name in fields), time, *last]


def lammps_row(record: dict) -> list[object]:
    fields = ("system", "members", "outputs", "dtype", "ranks", "threads")
    parts = ", ".join(f"{name} {part:.1%}" for name, part in record["breakdown"].items())
    speed = f"{record['katom_steps_per_second']:.1f}"
    return [*(record[name] for name in fields), speed, f"{record['us_per_atom']:.2f}", parts]


def versions(records: Records) -> list[str]:
    seen = dict.fromkeys(
        (r["model"], r["size"], r["architecture"], json.dumps(r["versions"]))
        for r in records
        if r["contest"] != "shares"
    )
    return [
        f"- {model} ({size}): {about}. {', '.join(f'{k} {v}' for k, v in json.loads(v).items())}."
        for model, size, about, v in seen
    ]


def ensembles(records: Records) -> list[str]:
    """One member alone and one of eight, in training."""
    steps = [
        (n, trained(records, "RACE", n), trained(records, "RACE", n, members=8)) for n in (5, 16)
    ]
    rows = [
        (f"{n} frames", f"{alone['us_per_atom']:.1f}", f"{eight['us_per_atom'] / 8:.1f}")
        for n, alone, eight in steps
        if alone and eight
    ]
    return table(("training on 3BPA, us/atom", "one member", "one of eight"), rows)


def payload(records: Records) -> list[str]:
    """What compiling the code between the kernels could win at most."""
    share = kernel_share(records)
    if share is None:
        return ["Not measured."]
    return [
        f"On Si-4096 that is {1 - share:.1%} of a prediction: a gain of at most {1 / share:.2f} x."
    ]


def measured(records: Records) -> list[str]:
    dates = sorted(r["date"] for r in records)
    machines = ", ".join(dict.fromkeys(r["machine"] for r in records))
    return [f"Measured on {machines}, {dates[0]} to {dates[-1]}."]


SETTING = ("system", "code", "model", "members")


def page(template: str, records: Records) -> str:
    """benchmarks/README.md with its tables drawn anew."""
    inference = [r for r in records if r["contest"] in ("inference", "same l", "latency")]
    training = [r for r in records if r["contest"] == "training"]
    runs = [r for r in records if r["contest"] == "LAMMPS"]
    timed = dict.fromkeys((r["model"], r["timed"]) for r in inference)
    speeds = ((r, f"{r.get('configurations_per_second', 0):.1f}, {memory(r)}") for r in training)
    return fill(
        template,
        {
            "measured": measured(records),
            "targets": table(
                ("", "target", "measured", ""), (target.row(records) for target in TARGETS)
            ),
            "ensembles": ensembles(records),
            "timed": (f"- {model}: {what}." for model, what in timed),
            "versions": versions(records),
            "inference": table(
                (*SETTING, "outputs", "dtype", "threads", "us/atom", "KiB/atom"),
                (speed_row(r, memory(r)) for r in inference),
            ),
            "training": table(
                (*SETTING, "step", "dtype", "threads", "us/atom", "configurations/s, KiB/atom"),
                (speed_row(*row) for row in speeds),
            ),
            "LAMMPS": table(
                ("system", "members", "outputs", "dtype", "ranks", "threads")
                + ("katom-step/s", "us/atom", "parts of the loop"),
                map(lammps_row, runs),
            ),
            "payload": payload(records),
        },
    )


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(), json.loads(FINAL.read_text())))


if __name__ == "__main__":
    main()
