"""The report's arithmetic: means over seeds, labels needed for an error, strategies that are
not as far as others.
"""

import matplotlib
import pytest
import yaml

from race.active.config import ActiveConfig
from race.active.results import draw, labels_to_reach, markdown, means
from race.evaluate.figures import STYLE


def config(**changes) -> ActiveConfig:
    return ActiveConfig.model_validate(
        yaml.safe_load("""
        initial: [a.xyz]
        pool: [b.xyz]
        test: {hot: c.xyz}
        oracle: {calculator: ase.calculators.emt.EMT}
        strategies: [random, bald-joint]
        rounds: 2
        """)
        | changes
    )


def records(rounds: dict[str, int], seeds=(0, 1)) -> list[dict]:
    out = []
    for strategy, n in rounds.items():
        factor = 0.5 if strategy == "bald-joint" else 1.0
        for seed in seeds:
            for k in range(n + 1):
                force = 100.0 / (1 + k) * (factor if k else 1) + seed
                out.append(
                    {
                        "strategy": strategy,
                        "seed": seed,
                        "round": k,
                        "n_labels": 10 + 5 * k,
                        "split": "hot",
                        "rmse_e": 2.0,
                        "rmse_f": force,
                        "interval90": {"rmse_f": [force - 3, force + 5]},
                    }
                )
    return out


def test_means_over_seeds():
    labels, values, ranges = means(records({"random": 2}), "random", "hot", "rmse_f")
    assert (
        labels == [10, 15, 20]
        and values == pytest.approx([100.5, 50.5, 100 / 3 + 0.5])
        and ranges == pytest.approx([0.5] * 3)
    )
    assert means([], "random", "hot", "rmse_f") == ([], [], [])


def test_units_are_those_of_the_target():
    assert "energy RMSE (meV/atom) / force RMSE (meV/Å)" in markdown(
        records({"random": 2}), config()
    )
    mean = config(seeds=[0, 1], strategies=["random"], model={"pooling": "mean"})
    assert "energy RMSE (1e-3 of the target's unit) / force" in markdown(
        records({"random": 2}), mean
    )
    energy = draw(records({"random": 2}), mean).axes[0]
    assert energy.get_ylabel() == "energy RMSE (1e-3 of the target's unit)"


def test_labels_to_reach():
    assert labels_to_reach([10, 20, 40], [100, 50, 30], 40) == pytest.approx(30)
    assert labels_to_reach([10, 20, 40], [100, 50, 30], 100) == 10
    assert labels_to_reach([10, 20, 40], [100, 50, 60], 55) == pytest.approx(19)
    assert labels_to_reach([10, 20], [100, 50], 49) is None and labels_to_reach([], [], 1) is None


def test_the_table_says_who_needs_fewer_labels():
    text = markdown(records({"random": 2, "bald-joint": 2}), config(seeds=[0, 1]))
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    }
    assert rows["labels"] == ["10", "15", "20", "labels for random's last force error"]
    assert rows["random"] == ["2.00 / 100.5", "2.00 / 50.5", "2.00 / 33.8", "20"]
    assert rows["bald-joint"][-1] == "14"  # half of random's labels beyond the first ten
    unfinished = markdown(records({"random": 2, "bald-joint": 1}), config())
    assert "| bald-joint | 2.00 / 100.5 | 2.00 / 25.5 |  | 14 |" in unfinished
    assert "| random |" in markdown([], config())


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_figure_of_any_state(seeds):
    with matplotlib.rc_context(STYLE):
        figure = draw(records({"random": 2, "bald-joint": 1}, seeds), config(seeds=list(seeds)))
        force = figure.axes[1]
        assert [list(line.get_xdata()) for line in force.lines if len(line.get_xdata()) == 3][
            0
        ] == [10, 15, 20]
        draw([], config())
