"""One run: a method and a seed, from the first step or the last checkpoint to the end."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import data
from train.checkpointing import compatibility, elastic
from train.checkpointing.checkpoints import Checkpoints
from train.checkpointing.folder import finite
from train.loop.preemption import Preempted, Preemption
from train.planning.experiment import Experiment
from train.reporting.clock import Clock
from train.reporting.profiling import Profile
from train.reporting.progress import Progress
from train.reporting.writer import Writer
from train.steps import drift
from train.steps.participation import present
from train.steps.totals import Totals
from train.steps.workers import RunState, Workers

Record = dict[str, Any]


class Run:
  """One method and one seed.

  Args:
    experiment: the config and what it comes to.
    workers: who trains, by the method.
    method: its name.
    seed: of weights, data and selector.
    folder: where its metrics and checkpoints go.
    progress: what it tells how far it is.
    preemption: what it asks whether to end.
  """

  def __init__(
    self,
    experiment: Experiment,
    workers: Workers,
    method: str,
    seed: int,
    folder: pathlib.Path,
    progress: Progress,
    preemption: Preemption,
  ):
    self.config, self.task, self.plan = experiment.config, experiment.task, experiment.plan
    self.workers, self.method, self.seed, self.folder = workers, method, seed, folder
    self.progress, self.preemption = progress, preemption
    self.name = f"{method} seed {seed}"
    self._costs = experiment.costs[method]
    self._densities = [1.0] if method == "none" else experiment.densities
    self._rate = experiment.rate
    self._seed = jnp.int32(seed)
    self._source = self.task.source(seed)
    self._waited = 0.0
    # Metrics of the last exchange.
    self._last: dict[str, float] = {}

  def train(self, report: Callable[[Record], None]) -> list[Record]:
    """Trains to the end.

    Args:
      report: is given each epoch's record.

    Returns:
      The records of all epochs.

    Raises:
      Preempted: when the process was told to end; where the run is has been saved.
      NotFiniteError: when too many exchanges in a row were skipped.
      DriftError: when workers have different weights.
      ValueError: when the checkpoint cannot be opened with this config.
    """
    checkpoints = Checkpoints(
      self.folder,
      self.config.keep_checkpoints,
      compatibility.fields_of(self.config),
      self.progress.line,
    )
    try:
      state, totals = self._start(checkpoints)
      for record in totals.records:
        report(record)
      self.progress.begin(self.name, totals.step, self.plan.exchanges)
      if totals.records:
        self._score(totals.records[-1])
      if totals.step < self.plan.exchanges:
        writer = Writer(self.folder, totals.step, totals.lines, self.progress.line)
        profile = Profile(
          self.folder / "profile", self.config.profile_from, self.config.profile_steps
        )
        with contextlib.closing(writer), contextlib.closing(profile):
          self._steps(state, totals, checkpoints, writer, profile, report)
    finally:
      checkpoints.close()
    return totals.records

  def _start(self, checkpoints: Checkpoints) -> tuple[RunState, Totals]:
    """The state before the first step to come."""
    params, model_state = jax.eval_shape(self.task.init, jax.random.key(0))
    if checkpoints.last is None:
      params, model_state = self.workers.first(self.task.init, self.seed)
      state = self.workers.init(params, model_state, self._seed)
      return state, Totals(self.workers.num_workers, self.plan.per_epoch)
    totals = Totals(**checkpoints.record())
    same = (totals.num_workers, totals.per_epoch) == (
      self.workers.num_workers,
      self.plan.per_epoch,
    )
    like = jax.eval_shape(self.workers.init, params, model_state, self._seed)
    like = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      like,
      self.workers.shardings(like),
    )
    if same:
      state = checkpoints.state(like)
    else:
      saved = checkpoints.state(jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like))
      saved, totals = elastic.resize(
        saved, totals, self.workers.num_workers, self.plan.per_epoch, self.progress.line
      )
      state = elastic.place(saved, like)
    done = totals.step >= self.plan.exchanges
    self.progress.line(
      f"{self.name}: {'was finished' if done else 'goes on'} at step {totals.step} of {self.plan.exchanges}"
    )
    return state, totals

  def _batches(self, step: int) -> Iterator[Any]:
    """This process's batches from a step on; how long they were waited for is noted."""
    batches = self.plan.batches
    loaded = data.load(
      self._source,
      self.workers.local,
      self.plan.exchanges * batches,
      start=step * batches,
      threads=self.config.data_threads,
    )
    loading = iter(loaded)
    while True:
      asked = time.monotonic()
      batch = next(loading, None)
      self._waited += time.monotonic() - asked
      if batch is None:
        return
      yield batch

  def _steps(
    self,
    state: RunState,
    totals: Totals,
    checkpoints: Checkpoints,
    writer: Writer,
    profile: Profile,
    report: Callable[[Record], None],
  ) -> None:
    config, plan, workers = self.config, self.plan, self.workers
    batches = self._batches(totals.step)
    every = plan.per_epoch if config.checkpoint_every is None else config.checkpoint_every
    due = lambda interval, step: bool(interval) and step % interval == 0
    clock = Clock(totals.step, totals.seconds)
    before: dict[str, jax.Array] | None = None
    for step in range(totals.step + 1, plan.exchanges + 1):
      profile.before()
      here = present(config.participation, workers.num_workers, self.seed, step - 1)
      taken = (next(batches) for _ in range(plan.batches))
      state, metrics = workers.step(state, taken, self._seed, here)
      profile.after(metrics)
      if before is not None:
        # While the step just dispatched is computed; waiting for them keeps the host from running ahead.
        self._note(before, totals, writer, clock)
      before = metrics
      last = step == plan.exchanges
      ends = last or step % plan.per_epoch == 0
      told = self.preemption.reached()
      if due(config.check_every, step) or last:
        fingerprints = workers.fingerprints(state.params)
        if fingerprints is not None:
          drift.check(fingerprints, step)
      save = config.checkpoint_every != 0 and (due(every, step) or last or told)
      if ends or save or told:
        self._note(metrics, totals, writer, clock)
        before = None
      if ends:
        record, evaluated = self._record(state, totals, clock)
        totals.records.append(record)
        report(record)
        writer.scalars(step, {name: record[name] for name in evaluated})
      if save:
        totals.seconds, totals.lines = clock.seconds(), writer.lines
        writer.sync()
        checkpoints.save(totals.step + totals.shift, state, dataclasses.asdict(totals))
      if told:
        saved = f"is saved at step {step}" if save else "is not saved (checkpoint_every=0)"
        self.progress.line(f"{self.name}: told to end; {saved} of {plan.exchanges}")
        raise Preempted

  def _note(
    self, metrics: dict[str, jax.Array], totals: Totals, writer: Writer, clock: Clock
  ) -> None:
    """What is done about a step that is over."""
    host = {name: float(value) for name, value in jax.device_get(metrics).items()}
    totals.add(host, self._at(self._costs, totals.step), self.config.max_skipped)
    self._last = host
    if totals.step % self.config.log_every == 0 or totals.step == self.plan.exchanges:
      pace = clock.pace(totals.step)
      values = {
        **host,
        **totals.bytes(),
        "learning_rate": float(self._rate(totals.step - 1)),
        "density": self._at(self._densities, totals.step - 1),
        "steps_per_second": pace,
        f"{self.task.unit}_per_second": pace * self._examples(),
        "seconds_left": clock.left(totals.step, self.plan.exchanges),
      }
      writer.write(totals.step, values)
    self.progress.step(totals.step, host.get("train_loss"), totals.sent_bytes)

  def _at(self, stages: list[Any], steps: int) -> Any:
    """Of a list over the epochs, whose last item stays, that of the exchange after so many others."""
    return stages[min(steps // self.plan.per_epoch, len(stages) - 1)]

  def _score(self, record: Record) -> None:
    if self.task.score.key in record:
      shown = self.task.score.shown(record[self.task.score.key])
      self.progress.score(f"{self.task.score.name} {shown}")

  def _examples(self) -> int:
    """Examples of an exchange."""
    return self.plan.batches * self.workers.num_workers * self.task.examples

  def _record(
    self, state: RunState, totals: Totals, clock: Clock
  ) -> tuple[Record, Collection[str]]:
    """The figures of an epoch that has ended, and which of them an evaluation has found."""
    exchanges, trained = totals.summed, clock.epoch()
    waited, self._waited = self._waited, 0.0
    epoch = -(-totals.step // self.plan.per_epoch)
    found = self._evaluate(state, totals) if self._due(epoch, totals.step) else {}
    record = {
      "method": self.method,
      "seed": self.seed,
      "epoch": epoch,
      "step": totals.step,
      "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
      **totals.bytes(),
      "link_bytes_a_step": self._at(self._costs, totals.step - 1).link,
      **self._last,
      **totals.means(),
      **found,
      "steps_per_second": exchanges / trained,
      f"{self.task.unit}_per_second": exchanges * self._examples() / trained,
      "seconds_waiting_for_data": waited,
      "seconds_evaluating": clock.epoch(),
      "seconds": clock.seconds(),
    }
    record = finite(record)
    self._score(record)
    self.progress.epoch()
    return record, found.keys()

  def _due(self, epoch: int, step: int) -> bool:
    """Whether an epoch ends with an evaluation."""
    every = self.config.eval_every
    last = step == self.plan.exchanges and self.config.eval_at_end
    return last or (bool(every) and epoch % every == 0)

  def _evaluate(self, state: RunState, totals: Totals) -> dict[str, float]:
    averaged = self.workers.mean(self.task.statistics(state.model_state))
    if self.workers.num_workers > 1:
      totals.statistics_bytes += sum(x.nbytes for x in jax.tree.leaves(averaged))
    return self.task.evaluate(self.workers.here(state.params), averaged)
