"""3BPA, active learning: the authors' acquired sets replayed, and our own selections from a pool.

    python benchmarks/uq/acquisition.py --data DATA        continues where it stopped; writes results/acquisition.json and .md

All start from the 500 frames at 300 K and add N frames at each of 600 and 1200 K, by `race active`, each round trained from the weights of
the last. Replayed are rng (random), hb (BALD of energies), hb_f (of forces) and hb_ef (half each), chosen from the whole trajectories by
another model. Our own pool is what was drawn from these at random: about 200 frames of each temperature, so that its `random`
is random. All are tested on the mixed-temperature frames, which no set has acquired.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
from study import arguments, reduced, say
from tables import cell, pooled, write

from race.active.config import ActiveConfig
from race.active.loop import Loop
from race.active.results import labels_to_reach

TEST = {"300 K": "test300K_mixedT_not_in_train", "600 K": "test600K_mixedT_plus_AL", "1200 K": "test1200K_mixedT_plus_AL"}
HOT = ("600 K", "1200 K")
METRICS = ("rmse_e", "rmse_f", "coverage90_f", "nll_f")
NAMES = {  # in the order of the tables
    "rng": "replay: random", "hb_ef": "replay: BALD, half each", "hb": "replay: BALD of energies", "hb_f": "replay: BALD of forces",
    "random": "random", "fps": "fps", "max-variance": "max-variance", "bald-joint": "bald-joint", "bald-energy": "bald-energy",
    "bald-force": "bald-force",
}  # fmt: skip
PAIRS = (("rng", "hb_ef"), ("random", "bald-joint"), ("random", "max-variance"))


def main() -> None:
    args, options = arguments("acquisition", __doc__)
    source = args.data / "3bpa"
    test, pool = prepare(source, args.out / "data", options.pop("stride"))
    replay = {name: replayed(source, name, sizes) for name, sizes in options.pop("replay").items()}
    common = options | {
        "initial": [str(source / "train_300K.xyz")], "pool": pool, "oracle": {"labels": "pool"}, "test": test, "ood": list(HOT),
    }  # fmt: skip
    for stage in common.pop("stages"):
        strategies = [replay.get(name, name) for name in stage["strategies"]]
        say(f"up to round {stage['rounds']}: {' '.join(stage['strategies'])}")
        Loop(ActiveConfig.model_validate(common | {"rounds": stage["rounds"], "strategies": strategies}), args.out / "loop").run()
        write(args.results, "acquisition", collect(args.out / "loop"), draw)
    say(f"done: {args.results / 'acquisition.md'}")


def prepare(source: Path, folder: Path, stride: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Writes the test sets and the pools by temperature: mixed-temperature frames, and those that active learning drew at random."""
    folder.mkdir(parents=True, exist_ok=True)
    test = {name: str(folder / f"test-{name.replace(' ', '')}.extxyz") for name in TEST}
    pool = {name: [str(folder / f"pool-{name.replace(' ', '')}.extxyz")] for name in HOT}
    for name, file in TEST.items():
        frames = ase.io.read(source / f"{file}.extxyz", index=":")
        sets = {test[name]: [frame for frame in frames if "mixedT" in frame.info["source"]][::stride]}
        if name in HOT:
            sets[pool[name][0]] = [frame for frame in frames if frame.info.get("random_selected") is True][::stride]
        for path, content in sets.items():
            if not Path(path).exists():
                ase.io.write(path, content)
    return test, pool


def replayed(source: Path, name: str, sizes: Sequence[int]) -> dict[str, Any]:
    """The authors' sets as a strategy: what they trained on and what they validated on."""
    folder = source / "active_learning"
    return {"name": name, "replay": [[str(folder / f"{part}_{name}_{n}.xyz") for part in ("train", "valid")] for n in sizes]}


def collect(loop: Path) -> list[dict[str, Any]]:
    """One record for each seed, strategy, round and test set; n_added: labels at each of the two temperatures."""
    rounds = [json.loads(path.read_text()) for path in sorted(loop.glob("seed-*/**/metrics.json"))]
    initial = {content["seed"]: content["n_labels"] for content in rounds if content["round"] == 0}
    return [
        reduced(record) | {key: content[key] for key in ("strategy", "seed", "round", "n_labels")}
        | {"n_added": (content["n_labels"] - initial[content["seed"]]) // len(HOT), "train_s": record.get("train_s"), "md_cost": None}
        for content in rounds for record in content["records"]
    ]  # fmt: skip


def series(records: Sequence[Mapping[str, Any]], strategy: str, split: str) -> dict[int, dict[str, Any]]:
    """n_added -> record, seeds pooled; the initial set belongs to every strategy."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["split"] == split and record["strategy"] in ("initial", strategy):
            found.setdefault(record["n_added"], []).append(record)
    return {n: pooled(found[n], METRICS) if len(found[n]) > 1 else dict(found[n][0]) for n in sorted(found)}


def draw(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables: errors by N, and how many labels BALD and the largest variance need for what random choice reaches."""
    present = [name for name in NAMES if any(record["strategy"] == name for record in records)]
    seeds = sorted({record["seed"] for record in records})
    sizes = sorted({record["n_added"] for record in records})
    lines = ["# 3BPA: frames of 600 and 1200 K added to 500 of 300 K", ""]
    lines += [f"Energy RMSE (meV/atom, 27 atoms) / force RMSE (meV/A) after adding N frames of each temperature; seeds: {seeds};"]
    lines += ["±: half the range over seeds. Tested on mixed-temperature frames that no set has acquired.", ""]
    for split in TEST:
        lines += [
            f"## Tested at {split}",
            "",
            "| chosen by | " + " | ".join(f"N = {n}" for n in sizes) + " |",
            "|" + "---|" * (1 + len(sizes)),
        ]
        for name in present:
            row = series(records, name, split)
            cells = [f"{cell(row[n], 'rmse_e', '.2f')} / {cell(row[n], 'rmse_f', '.1f')}" if n in row else "" for n in sizes]
            lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## Labels that reach the error of random choice", ""]
    lines += ["N at which the curve of another strategy, interpolated, first meets the error that random choice has at N.", ""]
    lines += [
        "| tested at | random | other | error | " + " | ".join(f"N = {n}" for n in sizes[1:]) + " |",
        "|" + "---|" * (4 + len(sizes) - 1),
    ]
    for plain, other in PAIRS:
        if plain in present and other in present:
            for split in HOT:
                for key, what in (("rmse_e", "energy"), ("rmse_f", "force")):
                    reached = labels_needed(records, plain, other, split, key)
                    cells = [
                        "" if n not in reached else f"{reached[n]:.0f}" if reached[n] is not None else "not reached" for n in sizes[1:]
                    ]
                    lines.append(f"| {split} | {NAMES[plain]} | {NAMES[other]} | {what} | " + " | ".join(cells) + " |")
    return lines


def labels_needed(records: Sequence[Mapping[str, Any]], plain: str, other: str, split: str, key: str) -> dict[int, float | None]:
    """For every N of `plain` the N at which `other` has its error; None where it has not within its own rounds."""
    random, curve = series(records, plain, split), series(records, other, split)
    errors = [record[key] for record in curve.values()]
    return {n: labels_to_reach(list(curve), errors, record[key]) for n, record in random.items() if n}


if __name__ == "__main__":
    main()
