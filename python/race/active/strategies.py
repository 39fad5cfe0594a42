"""The choice of frames of a pool: at random, by distance, by a score. The earlier of
equal frames is chosen. The same seed gives the same choice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from race.active.batches import (
    Farthest,
    JointInformation,
    LargestCluster,
    MaxDet,
    Picker,
    energy_features,
)
from race.active.config import STRATEGIES
from race.active.distances import Space, feature_space, pair_distance_space
from race.active.pool import Candidate
from race.active.scores import Scorer, pool_information, score_pool
from race.errors import RaceError
from race.predict.predictor import ModelPredictor, Progress

GREEDY = ("fps", "bald-all", "maxdet", "lcmd")


@dataclass(frozen=True)
class Choice:
    """A frame that was chosen: its place in the pool, the score that chose it (None for
    random) and that score's name.
    """

    index: int
    score: float | None
    by: str


@dataclass(frozen=True)
class Selector:
    """How to choose; `select` chooses.

    strategy: one of STRATEGIES. budget: frames wanted. seed: of `random` and of where
    `fps` begins. min_distance: RMS difference of sorted pair distances (Angstrom) below
    which a frame is too like one chosen before; 0: only equal structures are. features:
    of `fps`, "distances" or "model".
    """

    strategy: str
    budget: int
    seed: int = 0
    min_distance: float = 0.0
    features: str = "distances"

    def select(
        self,
        pool: Sequence[Candidate],
        model: Scorer | None = None,
        exclude: Sequence[Candidate] = (),
        progress: Progress = lambda n: None,
    ) -> list[Choice]:
        """At most `budget` frames of the pool, best first; fewer where min_distance or
        copies leave no more.

        exclude: structures known already. They are not chosen again, nor what is too like
        them; `fps` keeps away from them.

        Raises:
            RaceError: unknown strategy, a budget that is not positive or exceeds the
                pool, a model that cannot tell.
        """
        if self.strategy not in STRATEGIES:
            raise RaceError(
                "unknown strategy", expected=" ".join(STRATEGIES), got=repr(self.strategy)
            )
        if not 1 <= self.budget <= len(pool):
            expected = f"1 to {len(pool)}, the frames of the pool"
            raise RaceError(
                "the budget does not fit", where="--budget", expected=expected, got=self.budget
            )
        gate = Gate(pool, exclude, self.min_distance)
        if self.strategy == "random":
            # RandomState's stream is frozen by numpy's compatibility policy; Generator's is not.
            order = np.random.RandomState(self.seed).permutation(len(pool))
            return self._take(((int(k), None) for k in order), self.budget, gate, "random")
        if self.strategy in GREEDY:
            return self._greedy(self._picker(pool, model, exclude, progress), gate, len(pool))
        if self.strategy == "bald-drawn":
            gains = JointInformation(pool_information(pool, model, progress)).gains()
            drawn = ((int(k), float(gains[k])) for k in self._drawn(gains))
            return self._take(drawn, self.budget, gate, "bald-all")
        halves = {"bald-joint": ("bald-energy", "bald-force")}.get(self.strategy, (self.strategy,))
        chosen: list[Choice] = []
        for k, (name, scores) in enumerate(score_pool(pool, halves, model, progress).items()):
            ranked = ((int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable"))
            # Half each; the first has the odd one. The second half does not choose the
            # frames of the first again.
            chosen += self._take(
                ranked, -(-(self.budget - len(chosen)) // (len(halves) - k)), gate, name
            )
        return chosen

    def _drawn(self, scores: np.ndarray) -> np.ndarray:
        """An order: frames drawn with probabilities in proportion to their scores, without
        putting back, which is that of ln score + Gumbel noise. The highest scores are often
        those of like frames; a draw spreads over them at no cost (Kirsch et al. 2023,
        arXiv:2106.12059).
        """
        noise = np.random.RandomState(self.seed).gumbel(size=len(scores))
        smallest = np.finfo(float).tiny
        return np.argsort(-(np.log(np.maximum(scores, smallest)) + noise), kind="stable")

    def _take(
        self, ranked: Iterable[tuple[int, float | None]], n: int, gate: "Gate", name: str
    ) -> list[Choice]:
        out: list[Choice] = []
        for index, score in ranked:
            if len(out) == n:
                break
            if gate.admits(index):
                out.append(Choice(index, score, name))
        return out

    def _greedy(self, picker: Picker, gate: "Gate", n_pool: int) -> list[Choice]:
        """Each frame in the light of those before."""
        chosen: list[Choice] = []
        closed = np.zeros(n_pool, dtype=bool)
        while len(chosen) < self.budget and not closed.all():
            index, score = picker.best(closed)
            closed[index] = True
            if gate.admits(index):
                chosen.append(Choice(index, score, self.strategy))
                picker.add(index)
        return chosen

    def _picker(
        self,
        pool: Sequence[Candidate],
        model: Scorer | None,
        exclude: Sequence[Candidate],
        progress: Progress,
    ) -> Picker:
        if self.strategy == "bald-all":
            return JointInformation(pool_information(pool, model, progress))
        everything = [*pool, *exclude]
        if self.strategy == "fps" and self.features == "distances":
            space = pair_distance_space([candidate.atoms for candidate in everything], progress)
            return Farthest(space, len(pool), self.seed)
        predictor = model.predictor if model else None
        if not isinstance(predictor, ModelPredictor):
            raise RaceError(
                "model features need a model",
                where="--features model" if self.strategy == "fps" else self.strategy,
                expected="the folder of a run before the pool",
            )
        if self.strategy == "fps":
            space = feature_space(predictor, everything, progress)
            return Farthest(space, len(pool), self.seed)
        features = energy_features(predictor, everything, progress)
        of_pool, known = features[: len(pool)], features[len(pool) :]
        if self.strategy == "maxdet":
            return MaxDet(of_pool, known)
        return LargestCluster(of_pool, known)


class Gate:
    """Admits a frame once, and none that is too like a frame admitted before or known."""

    def __init__(
        self, pool: Sequence[Candidate], exclude: Sequence[Candidate], min_distance: float
    ):
        self.pool, self.min_distance = pool, min_distance
        self.known = {candidate.fingerprint for candidate in exclude}
        self.space: Space | None = None
        if min_distance > 0:
            self.space = pair_distance_space([candidate.atoms for candidate in [*pool, *exclude]])
            self.nearest = np.full(len(self.space.group), np.inf)
            for k in range(len(pool), len(self.nearest)):
                self.nearest = np.minimum(self.nearest, self.space.from_point(k))

    def admits(self, index: int) -> bool:
        """Whether a structure may still be taken: it is new, and not too close to one that was."""
        name = self.pool[index].fingerprint
        if name in self.known or (
            self.space is not None and self.nearest[index] < self.min_distance
        ):
            return False
        self.known.add(name)
        if self.space is not None:
            self.nearest = np.minimum(self.nearest, self.space.from_point(index))
        return True


def describe(choice: Choice, candidate: Candidate, strategy: str) -> dict[str, Any]:
    """Info keys of a chosen frame: race_strategy, race_score, race_score_name, race_source,
    race_frame.
    """
    out: dict[str, Any] = {
        "race_strategy": strategy,
        "race_source": Path(candidate.source).name,
        "race_frame": candidate.index,
    }
    if choice.score is not None:
        out |= {"race_score": choice.score, "race_score_name": choice.by}
    return out
