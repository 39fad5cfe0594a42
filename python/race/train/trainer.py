"""The training loop. One step trains every member; nothing is read from the device except
for the bar and at epoch ends (tests/train/test_no_reads.py).
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import Signals

import numpy as np
import torch
from torch import Tensor

from race.config import RunConfig
from race.data import Batch, Dataset
from race.errors import RaceError
from race.interrupt import Interrupt
from race.model.fused import keep_memory
from race.model.layer import is_last_layer
from race.model.race import RACE
from race.train.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint, write_tensors
from race.train.estimate import CostEstimate
from race.train.log import Log, headline
from race.train.loss import Loss, warmup_beta
from race.train.members import best_rows, bootstrap_draws
from race.train.metrics import Means, Metrics, total_forces_cov
from race.train.optim import Ema, Schedule, build_optimizer, clip_per_member
from race.train.parallel import Ranks

SCORED_BY = "RMS errors"  # of the kind of `State.best`


@dataclass
class State:
    """Where training stands: `epoch` epochs are complete, and `batch` batches of the next."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: list[float] = field(default_factory=list)  # score of each member's best epoch
    best_epoch: list[int] = field(default_factory=list)
    schedule: dict[str, float] = field(default_factory=dict)
    scored_by: str = SCORED_BY


class Trainer:
    """Trains `model` on `train`, judges it on `validation`, and keeps everything in the
    folder `run`.

    Args:
        config: options and constants.
        model: freshly initialised, on any device.
        train, validation: labelled datasets.
        run: existing folder. A checkpoint in it is continued.
        ranks: those that train together, all with the same arguments. The state is the
            same on all; the first writes it.
    """

    def __init__(
        self,
        config: RunConfig,
        model: RACE,
        train: Dataset,
        validation: Dataset,
        run: Path,
        ranks: Ranks | None = None,
    ):
        self.ranks = ranks or Ranks(config.train.device)
        self.config, self.options, self.train_set, self.validation_set, self.run = (
            config,
            config.train,
            train,
            validation,
            run,
        )
        self.device = self.ranks.device
        if self.device.type == "cpu":
            keep_memory()
        self.model = model.to(self.device)
        self.parameters = dict(model.named_parameters())
        frozen = config.train.freeze == "trunk"
        self.trained = {
            name: p for name, p in self.parameters.items() if not frozen or is_last_layer(name)
        }
        self.loss = self.make_loss()
        self.draws = (
            bootstrap_draws(len(train), config.model.n_members, config.train.seed).to(self.device)
            if config.train.bootstrap
            else None
        )
        self.mean_weight = {term: train.mean_weight(term) for term in self.loss.weights}
        self.n_batches = train.n_batches(config.train.batch_size)
        self.optimizer = self.make_optimizer()
        self.average = Ema(self.parameters.values(), config.train.ema_decay)
        self.schedule = self.make_schedule()
        self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.state = State(best=[float("inf")] * self.n_scores, best_epoch=[0] * self.n_scores)
        self.sums: dict[str, Tensor] = {}  # of the epoch under way, [n_members] each
        # Batch and totals when the bar was last refreshed
        self.shown: tuple[int, dict[str, float]] = (
            0,
            {},
        )
        self.row: dict[str, float] = {}  # of the log, last epoch
        self.saved = self.started = time.monotonic()
        self.passed = 0.0  # fraction of train.minutes
        if has_checkpoint(run):
            self._load()
        self.ranks.copy_first(
            [p.data for p in self.parameters.values()] + list(self.model.buffers())
        )

    # ---- what a subclass may change --------------------------------------------------------------

    @property
    def n_scores(self) -> int:
        """Columns of the loss: one for each member, which is then trained and judged by itself."""
        return self.config.model.n_members

    def make_loss(self) -> Loss:
        """The loss of the config; posteriors have their own."""
        return Loss(self.config, self.model.force_covariance)

    def clip(self) -> Tensor:
        """Bounds the gradients, and returns their norms [n_members]."""
        return clip_per_member(self.trained.values(), self.options.clip_norm)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the config; posteriors have their own."""
        return build_optimizer(self.trained, self.options, self.model.flat_matrices())

    def make_schedule(self) -> Schedule:
        """The schedule of the learning rate."""
        epochs = None if self.options.minutes else self.options.epochs
        return Schedule(self.options, epochs and epochs * self.n_batches)

    def more_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Further groups of tensors that a checkpoint keeps; `load_more` gets them back."""
        return {}

    def load_more(self, groups: dict[str, dict[str, Tensor]]) -> None:
        """Takes what `more_tensors` gave, from a checkpoint that is continued."""

    # ---- the loop --------------------------------------------------------------------------------

    def fit(self) -> None:
        """Trains until `train.epochs` epochs are complete or `train.minutes` have passed; on
        SIGTERM or Ctrl-C saves and leaves with SystemExit.
        """
        options, state = self.options, self.state
        with Interrupt() as interrupt, self._log() as log:
            self.started = time.monotonic()
            estimate = self._estimate(log) if log else None
            while not self.is_over():
                plan = self.train_set.plan(
                    options.batch_size, options.seed, state.epoch, balanced=options.balance
                )
                for batch in self._shares(self.train_set, plan[state.batch :]):
                    self.step(batch)
                    if estimate:
                        estimate.step()
                    if log and log.due():
                        log.progress(
                            state.epoch,
                            state.batch,
                            self.numbers(self.row | self._recent_means()),
                            self.passed,
                        )
                    # By any rank: all stop after the same step
                    received = self.ranks.largest(interrupt.received or 0)
                    if received or time.monotonic() - self.saved > 60 * options.checkpoint_minutes:
                        self._count_time()
                        self.save()
                    if received:
                        self.ranks.wait()
                        name, where = (
                            Signals(received).name,
                            f"epoch {state.epoch}, batch {state.batch}",
                        )
                        if log:
                            log.say(f"{name}: saved after {where}; continue with --resume")
                        raise SystemExit(128 + received)
                    if options.minutes and self.passed >= 1.0:
                        break
                self.row = self.end_epoch()
                self._count_time()
                if log:
                    log.epoch(
                        state.epoch, self.row | {"seconds": state.seconds}, self.numbers(self.row)
                    )
            self.save()
            self.ranks.wait()

    def _estimate(self, log: Log) -> CostEstimate:
        options, state = self.options, self.state
        epochs = seconds = None
        if options.minutes is not None:
            seconds = 60 * options.minutes - state.seconds
        elif options.epochs is not None:
            epochs = options.epochs - state.epoch - state.batch / self.n_batches
        return CostEstimate(self.device, self.n_batches, epochs, seconds, log.say)

    def is_over(self) -> bool:
        """Whether all of the training is done, by epochs or by time."""
        if self.options.minutes is None:
            assert self.options.epochs is not None
            return self.state.epoch >= self.options.epochs
        self.passed = self._fraction()
        return self.passed >= 1.0

    def _fraction(self) -> float:
        """Fraction of the time that has passed: the same on every rank."""
        if self.options.minutes is None:
            return 0.0
        seconds = self.state.seconds + time.monotonic() - self.started
        return self.ranks.largest(int(1000 * seconds)) / (60_000 * self.options.minutes)

    def _count_time(self) -> None:
        now = time.monotonic()
        self.state.seconds, self.started = self.state.seconds + now - self.started, now

    def step(self, batch: Batch | None) -> None:
        """One update of every member, from this rank's share of a batch; None where there
        are fewer frames than ranks.
        """
        state = self.state
        self.passed = self._fraction()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(state.step, self.passed) * group.get("factor", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        epoch = state.epoch + state.batch / self.n_batches
        # A fifth of a short time at most
        epoch = max(epoch, 5 * self.passed * self.options.warmup_epochs)
        beta = warmup_beta(self.config, epoch)
        if batch is None:
            sums = {
                term: torch.zeros(self.n_scores, device=self.device) for term in self.loss.weights
            }
            counts = dict.fromkeys(sums, 0)
        else:
            out = self.model(
                batch,
                forces=self.needs_forces,
                create_graph=True,
                stress="stress" in self.loss.weights,
            )
            draws = None if self.draws is None else self.draws[batch.index]
            sums = self.loss.sums(out, batch, beta, draws)
            counts = {term: len(batch.weights(term)) for term in sums}
        # By the mean weight of the training set: by that of the batch, one of a single frame would
        # not know its weight
        counts = self.ranks.total(counts)
        terms = self.loss.means(sums, {t: n * self.mean_weight[t] for t, n in counts.items()})
        # Members share no parameter: the sum gives each its own gradient. Named inputs
        # spare the edge basis, whose leaves want one too.
        if batch is not None:
            terms["loss"].sum().backward(inputs=list(self.trained.values()))
        terms = {name: value.detach().double() for name, value in terms.items()}
        self.ranks.add([*self._gradients(), *terms.values()])
        terms["gradient"] = self.clip()
        self.optimizer.step()
        self.average.update(state.step)
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        state.step += 1
        state.batch += 1

    def _gradients(self) -> list[Tensor]:
        """Gradients of all parameters on every rank; zero where this rank's share gives none."""
        for p in self.trained.values():
            if p.grad is None and self.ranks.size > 1:
                p.grad = torch.zeros_like(p)
        return [p.grad for p in self.trained.values() if p.grad is not None]

    def _shares(self, dataset: Dataset, plan: list[np.ndarray]) -> Iterator[Batch | None]:
        """This rank's share of every batch of `plan`."""
        for indices in plan:
            mine = (
                indices[self.ranks.share(dataset.n_edges(indices))]
                if self.ranks.size > 1
                else indices
            )
            yield dataset.batch(mine).to(self.device) if len(mine) else None

    def _log(self) -> AbstractContextManager[Log | None]:
        if not self.ranks.first:
            return nullcontext()
        return Log(
            self.run,
            None if self.options.minutes else self.options.epochs,
            self.n_batches,
            self.state.epoch,
        )

    def end_epoch(self) -> dict[str, float]:
        """Validates, keeps what is best, moves on to the next epoch; returns the row of the log."""
        training = self._training_means()
        with self.average.applied():
            scores, metrics = self.validate()
            averages = {name: p.detach().clone() for name, p in self.parameters.items()}
        state = self.state
        better = torch.tensor(
            [score < best for score, best in zip(scores, state.best, strict=True)]
        )
        state.epoch, state.batch, self.sums = state.epoch + 1, 0, {}
        if better.any():
            self.best = best_rows(averages, self.best, better.to(self.device))
            state.best = [min(pair) for pair in zip(scores, state.best, strict=True)]
            state.best_epoch = [
                state.epoch if is_better else old
                for is_better, old in zip(better.tolist(), state.best_epoch, strict=True)
            ]
            if self.ranks.first:
                write_tensors(self.run / "model.safetensors", self.best, self.config.model)
        rate = self.schedule.rate(state.step - 1, self.passed)
        self.schedule.observe(sum(scores) / len(scores))
        return {"learning_rate": rate} | training | metrics

    @property
    def needs_forces(self) -> bool:
        """Whether the loss has terms of forces or stress."""
        return bool({"forces", "stress"} & self.loss.weights.keys())

    # ---- validation ------------------------------------------------------------------------------

    def shares_of(self, dataset: Dataset) -> Iterator[Batch | None]:
        """This rank's shares of the frames of a dataset, in its order."""
        return self._shares(dataset, dataset.plan(self.options.batch_size, shuffle=False))

    def validate(self, dataset: Dataset | None = None) -> tuple[list[float], dict[str, float]]:
        """The score of each member [n_members] (`Loss.score`), and metrics by name
        (`validation/forces_rmse`, `.../member_0`), of the validation set or another.
        """
        dataset = self.validation_set if dataset is None else dataset
        metrics, loss = Metrics(self.config.model, self.model.constants), Means()
        for batch in self.shares_of(dataset):
            if batch is None:
                continue
            out = self.model(batch, forces=self.needs_forces).detach()
            with torch.no_grad():
                metrics.update(
                    batch,
                    out,
                    total_forces_cov(self.model, out.raw) if self.needs_forces else None,
                )
                for term, rows in self.loss.rows(out, batch).items():
                    loss.add(term, rows.double().unsqueeze(2), batch.weights(term))
        terms, found = loss.result(self.ranks), metrics.result(self.ranks)
        errors = {
            name.removesuffix("_rmse"): values[: self.n_scores]
            for name, values in found.items()
            if name.endswith("_rmse")
        }
        scores, total = self.loss.score(terms, errors), self.loss.total(terms)
        table = {"loss": torch.cat([total, total.mean(0, keepdim=True)])} | found
        row = {f"validation/{name}": values[-1].item() for name, values in table.items()}
        if self.config.model.n_members > 1:
            row |= {
                f"validation/{name}/member_{m}": x
                for name, values in table.items()
                for m, x in enumerate(values[:-1].tolist())
            }
        return scores.tolist(), row

    # ---- numbers ---------------------------------------------------------------------------------

    def _training_means(self) -> dict[str, float]:
        """Means of the epoch so far over its batches and members. Refuses a run that has
        diverged.
        """
        names = list(self.sums)
        # [term, n_members]
        values = torch.stack([self.sums[name].double() for name in names]) / max(
            self.state.batch, 1
        )
        finite = torch.isfinite(values).all(0).tolist()
        if not all(finite):
            raise RaceError(
                f"the loss of member {finite.index(False)} is not finite",
                where=f"epoch {self.state.epoch + 1}, batch {self.state.batch}",
                remedy=f"lower train.learning_rate (now {self.options.learning_rate:g}) and "
                "continue with --resume, "
                "or look for wrong labels in the data",
            )
        return dict(zip((f"train/{name}" for name in names), values.mean(1).tolist(), strict=True))

    def _recent_means(self) -> dict[str, float]:
        """Means since the bar was last refreshed: those of the whole epoch remember its
        beginning for long.
        """
        batch = self.state.batch
        totals = {name: mean * batch for name, mean in self._training_means().items()}
        before, subtracted = self.shown if self.shown[0] < batch else (0, {})
        self.shown = (batch, totals)
        return {
            name: (total - subtracted.get(name, 0.0)) / (batch - before)
            for name, total in totals.items()
        }

    def numbers(self, row: dict[str, float]) -> str:
        """The few numbers worth reading."""
        return headline(row, self.config.model.pooling)

    # ---- checkpoints -----------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint from which training continues with the same numbers."""
        if self.sums:
            self._training_means()  # never save what has diverged
        if not self.ranks.first:
            return
        self.state.schedule = self.schedule.state()
        weights = {name: p.detach() for name, p in self.parameters.items()}
        average = dict(zip(self.parameters, self.average.tensors, strict=True))
        # Buffers are rebuilt from the config, but through LAPACK: not to the last bit.
        groups = {
            "weights": weights,
            "average": average,
            "best": self.best,
            "buffers": dict(self.model.named_buffers()),
        }
        optimizer = {"optimizer": self.optimizer.state_dict(), "sums": self.sums}
        save_checkpoint(self.run, groups, optimizer, asdict(self.state), self.more_tensors())
        self.saved = time.monotonic()

    def _load(self) -> None:
        groups, optimizer, state = load_checkpoint(self.run)
        with torch.no_grad():
            for k, (name, p) in enumerate(self.parameters.items()):
                p.copy_(groups["weights"][name])
                self.average.tensors[k].copy_(groups["average"][name])
                self.best[name].copy_(groups["best"][name])
            for name, buffer in self.model.named_buffers():
                # One that has come since the checkpoint: as it is built
                buffer.copy_(groups["buffers"].get(name, buffer))
        self.load_more(groups)
        try:
            self.optimizer.load_state_dict(optimizer["optimizer"])
        except ValueError:
            raise RaceError(
                "the state of the optimiser has other groups of parameters",
                where=self.run / "checkpoint",
                expected="a checkpoint of this version",
                remedy="train anew, or from these weights with train.warm_start",
            ) from None
        self.sums = {name: value.to(self.device) for name, value in optimizer["sums"].items()}
        self.state = State(**state)
        if state.get("scored_by") != SCORED_BY:  # of an earlier version: not to be compared
            self.state.best = [float("inf")] * self.n_scores
            self.state.scored_by = SCORED_BY
        self.schedule.load(self.state.schedule)
        self.ranks.wait()  # before any rank can write another
