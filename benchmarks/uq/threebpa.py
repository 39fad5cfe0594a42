"""3BPA: trained at 300 K, judged at 300, 600 and 1200 K.

    python benchmarks/uq/threebpa.py --data DATA        continues where it stopped; writes
                                                        results/threebpa.json and .md

`point` is each member of the MSE ensemble by itself, `single-jef` each of the NLL_JEF
ensemble; Laplace is fitted to one member of the MSE ensemble. The test frames were drawn
at random (mixed-temperature sets, and the random draws of the authors' active learning);
those that uncertainty chose are left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
from result_tables import pooled, table, write
from study import METRICS, Study, arguments, say, seconds

TEST = {
    "300 K": "test300K_mixedT_not_in_train",
    "600 K": "test600K_mixedT_plus_AL",
    "1200 K": "test1200K_mixedT_plus_AL",
}
KEYS = (
    *("rmse_e", "rmse_f", "ce_e", "ce_e_floor", "ce_f", "ce_f_floor"),
    *("coverage90_e", "coverage90_f", "pit_ks", "pit_ks_floor", "nll_f"),
    *("auroc_error_f", "auroc_error_f_ideal", "auroc_error_f_trivial", "ause_f"),
    *("auroc", "auroc_ideal", "auroc_energy", "auroc_bald"),
    *("auroc_trivial", "auroc_by_energy", "train_s", "md_cost", "md_cost_mean"),
)
ENSEMBLES = {"mse": "ensemble", "nll_e": "DE-E", "nll_jef": "DE-JEF"}
SINGLES = {"mse": "point", "nll_jef": "single-jef"}


def main() -> None:
    args, options = arguments("threebpa", __doc__)
    study = Study(args.out, options["bootstrap"], options["timing"])
    splits = {
        name: [path]
        for name, path in prepare(args.data / "3bpa", args.out / "data", options["stride"]).items()
    }
    step = ase.io.read(splits["300 K"][0], index=0)
    records: list[dict[str, Any]] = []

    def judge(name: str, runs: Sequence[Path], train_s: float) -> None:
        cost = study.cost(name, runs[0], point, step)
        judged = [study.evaluate(run.name, run, splits, ["600 K", "1200 K"]) for run in runs]
        for same in zip(*judged, strict=True):
            record = pooled(same, METRICS) if len(runs) > 1 else same[0]
            records.append(record | cost | {"posterior": name, "train_s": train_s})
        write(args.results, "threebpa", records, draw)

    data = options["data"] | {"train": [str(args.data / "3bpa" / "train_300K.xyz")]}
    for kind, choice in options["kinds"].items():
        members = options["members"] if kind in ENSEMBLES else 1
        model = options["model"] | {"n_members": members, "head": choice["head"]}
        run = study.train(
            kind,
            {"data": data, "model": model, "train": options["train"] | {"loss": choice["loss"]}},
        )
        singles = (
            [study.fit(f"{kind}-{k}", "ensemble", [run], take=k) for k in range(members)]
            if kind in SINGLES
            else []
        )
        if kind == "mse":
            point, share = singles[0], seconds(run) / members
        if singles:
            judge(SINGLES[kind], singles, seconds(run) / members)
        if kind in ENSEMBLES:
            judge(ENSEMBLES[kind], [run], seconds(run))
        else:
            judge(kind, [study.fit(f"{kind}-fit", "evidential", [run])], seconds(run))
        if kind == "mse":
            for name, changes in options["laplace"].items():
                fitted = study.fit(name, "laplace", [point], **changes)
                judge(name, [fitted], share + seconds(fitted, own=True))
    say(f"done: {args.results / 'threebpa.md'}")


def prepare(source: Path, folder: Path, stride: int) -> dict[str, Path]:
    """Writes the randomly drawn test frames by temperature."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name.replace(' ', '')}.extxyz" for name in TEST}
    for name, path in paths.items():
        if not path.exists():
            frames = ase.io.read(source / f"{TEST[name]}.extxyz", index=":")
            random = [
                frame
                for frame in frames
                if frame.info.get("random_selected", "mixedT" in frame.info["source"])
            ]
            ase.io.write(path, random[::stride])
    return paths


def draw(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables."""
    lines = ["# 3BPA: trained at 300 K", ""]
    lines += [
        "Errors in meV/atom (27 atoms) and meV/A; ±: half the range over the members, each by "
        "itself. AUROC: against 300 K.",
        "",
    ]
    for split in TEST:
        of = [record for record in records if record["split"] == split]
        lines += [
            f"## {split}, {of[0]['n_frames']} frames" if of else f"## {split}",
            "",
            *table(of, {"posterior": "posterior"}, KEYS),
            "",
        ]
    return lines[:-1]


if __name__ == "__main__":
    main()
