"""All of `make bench`, one stage after another. Stopped and started again, it goes on where it was.

    python benchmarks/run.py [--quick]

--quick: a few minutes, to see that everything runs; its results stay under build/bench.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import arguments
import chart
import report
import results

HERE = Path(__file__).parent
STAGES = {
    "compare.py": "RACE and its peers, side by side",
    "in_lammps.py": "RACE in LAMMPS",
    "shares.py": "where the time goes",
    "roofline.py": "kernels against the ceilings of this machine",
}


def main() -> None:
    quick = arguments.quick(__doc__)
    start = time.monotonic()
    for k, (script, what) in enumerate(STAGES.items()):
        print(
            f"[{k + 1}/{len(STAGES)}] {what} ({(time.monotonic() - start) / 60:.1f} min so far)",
            flush=True,
        )
        subprocess.run(
            [sys.executable, str(HERE / script), *(["--quick"] if quick else [])], check=True
        )
    data = results.BUILD / "quick.json" if quick else results.FINAL
    results.Journal("quick" if quick else "full").finish(data)
    records = json.loads(data.read_text())
    table, picture = (
        (results.BUILD / "quick.md", results.BUILD / "quick.png")
        if quick
        else (report.PAGE, chart.PICTURE)
    )
    table.write_text(report.page(records))
    chart.draw(records, picture)
    print(f"{data}\n{table}\n{picture}\n{(time.monotonic() - start) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
