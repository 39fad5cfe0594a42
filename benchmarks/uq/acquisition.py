"""3BPA, active learning: the authors' acquired sets replayed, and our own selections from a pool.

    python benchmarks/uq/acquisition.py --data DATA        continues where it stopped;
                                                           writes results/acquisition.json
                                                           and .md

All start from the 500 frames at 300 K and add N frames at each of 600 and 1200 K, by
`race active`, each round trained from the weights of the last. Replayed are rng (random),
hb (BALD of energies), hb_f (of forces) and hb_ef (half each), chosen from the whole
trajectories by another model. Our own pool is what was drawn from these at random: about
200 frames of each temperature, so that its `random` is random. All are tested on the
mixed-temperature frames, which no set has acquired.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import ase.io
from result_tables import cell, pooled, write
from study import arguments, merged, say

from race.active.config import ActiveConfig
from race.active.loop import Loop
from race.active.results import labels_to_reach

TEST = {
    "300 K": "test300K_mixedT_not_in_train",
    "600 K": "test600K_mixedT_plus_AL",
    "1200 K": "test1200K_mixedT_plus_AL",
}
HOT = ("600 K", "1200 K")
METRICS = ("rmse_e", "rmse_f", "coverage90_f", "nll_f")
ERRORS = {"rmse_e": "energy", "rmse_f": "force"}
NAMES = {  # in the order of the tables
    "rng": "replay: random",
    "hb_ef": "replay: BALD, half each",
    "hb": "replay: BALD of energies",
    "hb_f": "replay: BALD of forces",
    "random": "random",
    "fps": "fps",
    "max-variance": "max-variance",
    "bald-joint": "bald-joint",
    "bald-energy": "bald-energy",
    "bald-force": "bald-force",
}
PAIRS = (
    ("rng", "hb_ef"),
    ("random", "bald-joint"),
    ("random", "bald-force"),
    ("random", "max-variance"),
)
Records = Sequence[Mapping[str, Any]]


def main() -> None:
    args, options = arguments("acquisition", __doc__)
    source = args.data / "3bpa"
    test, pool = prepare(source, args.out / "data", options.pop("stride"))
    replay = {name: replayed(source, name, sizes) for name, sizes in options.pop("replay").items()}
    files = {
        "initial": [str(source / "train_300K.xyz")],
        "pool": pool,
        "oracle": {"labels": "pool"},
        "test": test,
        "ood": list(HOT),
    }
    loops = options.pop("loops")
    options.pop("ranking_draws")
    for folder, changes in loops.items():
        common = merged(options, changes) | files
        for stage in common.pop("stages"):
            strategies = [replay.get(name, name) for name in stage["strategies"]]
            say(
                f"{folder}, up to round {stage['rounds']}, seeds {stage['seeds']}: "
                f"{' '.join(stage['strategies'])}"
            )
            Loop(
                ActiveConfig.model_validate(common | stage | {"strategies": strategies}),
                args.out / folder,
            ).run()
            write(args.results, "acquisition", collect([args.out / name for name in loops]), draw)
    say(f"done: {args.results / 'acquisition.md'}")


def prepare(source: Path, folder: Path, stride: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Writes the test sets and the pools by temperature: mixed-temperature frames, and those
    that active learning drew at random.
    """
    folder.mkdir(parents=True, exist_ok=True)
    test = {name: str(folder / f"test-{name.replace(' ', '')}.extxyz") for name in TEST}
    pool = {name: [str(folder / f"pool-{name.replace(' ', '')}.extxyz")] for name in HOT}
    for name, file in TEST.items():
        frames = ase.io.read(source / f"{file}.extxyz", index=":")
        sets = {
            test[name]: [frame for frame in frames if "mixedT" in frame.info["source"]][::stride]
        }
        if name in HOT:
            sets[pool[name][0]] = [
                frame for frame in frames if frame.info.get("random_selected") is True
            ][::stride]
        for path, content in sets.items():
            if not Path(path).exists():
                ase.io.write(path, content)
    return test, pool


def replayed(source: Path, name: str, sizes: Sequence[int]) -> dict[str, Any]:
    """The authors' sets as a strategy: what they trained on and what they validated on."""
    folder = source / "active_learning"
    return {
        "name": name,
        "replay": [
            [str(folder / f"{part}_{name}_{n}.xyz") for part in ("train", "valid")] for n in sizes
        ],
    }


def collect(loops: Sequence[Path]) -> list[dict[str, Any]]:
    """One record for each loop, seed, strategy, round and test set; n_added: labels at each
    of the two temperatures.
    """
    records = []
    for loop in loops:
        rounds = [
            json.loads(path.read_text()) for path in sorted(loop.glob("seed-*/**/metrics.json"))
        ]
        initial = {
            content["seed"]: content["n_labels"] for content in rounds if content["round"] == 0
        }
        records += [
            {key: record.get(key) for key in ("split", "n_members", *METRICS)}
            | {key: content[key] for key in ("strategy", "seed", "round", "n_labels")}
            | {"n_added": (content["n_labels"] - initial[content["seed"]]) // len(HOT)}
            for content in rounds
            for record in content["records"]
        ]
    return records


def seeds_of(records: Records, *strategies: str, n: int | None = None) -> list[int]:
    """Seeds of which there are rounds of all these strategies; n: with that many labels
    of the first.
    """
    found = [
        {
            r["seed"]
            for r in records
            if r["strategy"] == name and (n is None or k or r["n_added"] == n)
        }
        for k, name in enumerate(strategies)
    ]
    return sorted(set.intersection(*found))


def series(
    records: Records, strategy: str, split: str, seeds: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """n_added -> the mean record of these seeds, where there are all of them; the initial
    set belongs to every strategy.
    """
    found: dict[int, list[Mapping[str, Any]]] = {}
    for record in records:
        if (
            record["split"] == split
            and record["strategy"] in ("initial", strategy)
            and record["seed"] in seeds
        ):
            found.setdefault(record["n_added"], []).append(record)
    whole = {n: rows for n, rows in sorted(found.items()) if len(rows) == len(seeds)}
    return {
        n: pooled(rows, METRICS) if len(rows) > 1 else dict(rows[0]) for n, rows in whole.items()
    }


def draw(records: Records) -> list[str]:
    """The tables: errors by N, and how many labels BALD and the largest variance need for
    what random choice reaches.
    """
    lines = ["# 3BPA: frames of 600 and 1200 K added to 500 of 300 K", ""]
    lines += [
        "Energy RMSE (meV/atom, 27 atoms) / force RMSE (meV/A) after adding N frames of each "
        "temperature: mean over seeds ± half their"
    ]
    lines += [
        "range. A seed makes the initial weights, the division of the data and whatever is drawn. "
        "Tested on mixed-temperature frames"
    ]
    lines += [
        "that no set has acquired.",
        "",
        "Labels that reach the error of random choice: N at which the curve of the other strategy, "
        "interpolated, first",
    ]
    lines += [
        "meets the error that random choice has at N; both curves are means over the seeds that "
        "have both, in brackets the range of what"
    ]
    lines += ["single seeds need; -: not reached by the last round.", ""]
    for members in sorted({record["n_members"] for record in records}):
        same = [record for record in records if record["n_members"] == members]
        present = [name for name in NAMES if seeds_of(same, name)]
        sizes = sorted({record["n_added"] for record in same})
        for split in TEST:
            lines += [f"## {members} members, tested at {split}", ""]
            lines += [
                "| chosen by | seeds | " + " | ".join(f"N = {n}" for n in sizes) + " |",
                "|" + "---|" * (2 + len(sizes)),
            ]
            for name in present:
                lines += [
                    f"| {NAMES[name]} | " + " | ".join(errors_of(same, name, split, sizes)) + " |"
                ]
            lines.append("")
        lines += [f"## {members} members: labels that reach the error of random choice", ""]
        lines += [
            "| tested at | random | other | error | "
            + " | ".join(f"N = {n}" for n in sizes[1:])
            + " |",
            "|" + "---|" * (3 + len(sizes)),
        ]
        for (plain, other), split, key in product(PAIRS, HOT, ERRORS):
            if plain in present and other in present:
                needed = labels_needed(same, plain, other, split, key)
                cells = [str(needed.get(n, "")) for n in sizes[1:]]
                lines += [
                    f"| {split} | {NAMES[plain]} | {NAMES[other]} | {ERRORS[key]} | "
                    + " | ".join(cells)
                    + " |"
                ]
        lines.append("")
    return lines[:-1]


def errors_of(records: Records, name: str, split: str, sizes: Sequence[int]) -> list[str]:
    """Cells of one row: the number of seeds, and of each size the errors over the seeds
    that have it.
    """
    cells = [str(len(seeds_of(records, name)))]
    for n in sizes:
        seeds = seeds_of(records, name, n=n or None)
        row = series(records, name, split, seeds).get(n) if seeds else None
        cells.append(f"{cell(row, 'rmse_e', '.2f')} / {cell(row, 'rmse_f', '.1f')}" if row else "")
    return cells


@dataclass(frozen=True)
class Need:
    """Labels that reach an error: by the mean curve, and by the curve of each seed; None
    where it does not within its rounds.
    """

    mean: float | None
    seeds: list[float | None]

    def __str__(self) -> str:
        shown = [
            "-" if n is None else f"{n:.0f}"
            for n in (self.mean, *sorted(self.seeds, key=lambda n: (n is None, n or 0)))
        ]
        return shown[0] + (f" ({shown[1]} to {shown[-1]})" if len(self.seeds) > 1 else "")


def labels_needed(
    records: Records, plain: str, other: str, split: str, key: str
) -> dict[int, Need]:
    """For every N of `plain` the N at which `other` has its error, over the seeds that
    have both.
    """
    out = {}
    for n in sorted({r["n_added"] for r in records if r["strategy"] == plain}):
        seeds = seeds_of(records, plain, other, n=n)
        if seeds:
            needs = []
            for some in (seeds, *([seed] for seed in seeds)):
                random, curve = (
                    series(records, plain, split, some),
                    series(records, other, split, some),
                )
                needs.append(
                    labels_to_reach(
                        list(curve), [record[key] for record in curve.values()], random[n][key]
                    )
                )
            out[n] = Need(needs[0], needs[1:])
    return out


if __name__ == "__main__":
    main()
