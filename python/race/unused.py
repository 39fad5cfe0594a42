"""Options that another one silences: who writes an option takes it to be used."""

from collections.abc import Iterator

from race.config import Config
from race.heads import LOSSES


def unused(config: Config) -> Iterator[str]:
    """One line for each option that the user wrote and that changes nothing."""
    data, model, train = config.data, config.model, config.train
    named = "data.validation names the files" if data.validation else ""
    plain = "" if LOSSES[train.loss].energy_noise else f"train.loss is {train.loss}"
    one_source = data.energy_offsets == "none" and not data.label_noise
    reasons = {
        "data.validation_fraction": named,
        "data.split_seed": named,
        "data.source_key": "neither data.energy_offsets nor data.label_noise is given" * one_source,
        "model.energy_aggregation": "model.head is point" * (model.head == "point"),
        "train.patience": f"train.schedule is {train.schedule}" * (train.schedule != "plateau"),
        "train.warmup_epochs": plain,
        "train.beta": plain,
    }
    for name, reason in reasons.items():
        section, key = name.split(".")
        if reason and key in getattr(config, section).model_fields_set:
            yield f"{name} is not used: {reason}"
