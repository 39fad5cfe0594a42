"""The table of what a prediction says of its own error, and what of a model each row needs."""

import pytest
import race._race

from race.deploy.calculator import UNCERTAINTY
from race.deploy.export import export_model
from race.errors import RaceError

from .conftest import make_model

ROWS = race._race.quantities()


def test_names_are_unique():
    keys = [(row["name"], row["per_atom"]) for row in ROWS]
    assert len(set(keys)) == len(keys)
    for field in ("symbol", "property"):
        given = [row[field] for row in ROWS if row[field]]
        assert len(set(given)) == len(given) > 3
    assert all(row["meaning"] and row["dimension"] for row in ROWS)


def test_every_property_of_the_calculator_is_a_row():
    assert {row["property"] for row in ROWS if row["property"]} == set(UNCERTAINTY)


@pytest.mark.parametrize(
    "head, n_members, stress_head",
    [
        ("point", 1, "none"),
        ("point", 2, "none"),
        ("energy", 1, "none"),
        ("energy", 2, "none"),
        ("equivariant", 1, "equivariant"),
        ("evidential", 1, "none"),
        ("eip", 1, "none"),
        ("equivariant", 2, "none"),
    ],
)
def test_available(tmp_path, head, n_members, stress_head):
    """Stated here once more, quantity by quantity, from the equations."""
    path = tmp_path / "x.race.pt"
    export_model(make_model(head=head, n_members=n_members, stress_head=stress_head), path)
    model = race._race.load(str(path))
    ensemble, own = n_members > 1, head in ("evidential", "eip")
    cov = own or head == "equivariant"
    expected = {
        "energy_std": ensemble or head != "point",
        "energy_members": True,
        "energy_bald": ensemble and head != "point",
        "forces_cov": ensemble or cov,
        "forces_cov_aleatoric": cov,
        "forces_cov_epistemic": ensemble or own,
        "bald": cov and (ensemble or own),
        "stress_std": ensemble or stress_head != "none",
        "stress_cov_aleatoric": stress_head != "none",
        "stress_cov_epistemic": ensemble,
        "forces_std": ensemble or cov,
        "forces_interval": False,
        "grade": False,
    }
    for row in ROWS:
        if row["property"] in expected:
            said = model.missing(row["name"], row["per_atom"])
            assert (said == "") == expected[row["property"]], (row, said)
            if said and not row["interval_of"]:
                assert f"{n_members} member(s), head {head}" in said and "; expected " in said


def test_an_unknown_row_is_refused(tmp_path):
    path = tmp_path / "x.race.pt"
    export_model(make_model(), path)
    with pytest.raises(RaceError, match="got force/colour"):
        race._race.load(str(path)).missing("force/colour", True)
