"""The training loop: batches in; steps, rows, pictures, checkpoints, evaluations out, in an order that loses nothing.

In memory first: a step changes the networks and the counts, then it counts as done. What goes to disk follows: rows,
picture, checkpoint, backbone, evaluation. Whatever fails there, or while waiting for a batch, finds whole steps to
save; what had not been written yet is written when the run is resumed.
"""

from __future__ import annotations

import time
from typing import Any, Generic

from mst.engine.feeder import Feeder
from mst.engine.guard import StepGuard
from mst.engine.saving import Saver
from mst.engine.task import Back, Batch, Intervals, Outputs, Remarks, StepReport, Task
from mst.errors import RunFailure
from mst.parallel.world import World
from mst.runtime import logging
from mst.runtime.memory import resident_memory
from mst.runtime.progress import Throughput, TrainingProgress
from mst.runtime.signals import GracefulStop
from mst.runtime.storage.files import remove_asides
from mst.runtime.storage.record import RunRecord, bad_steps_file
from mst.runtime.storage.results import read_jsonl

SIGNAL_LAG = 1.0
"""Seconds that a signal to all processes may reach the source of the batches before it reaches the loop."""

WITHOUT = 1000
"""Added to a signal's number where its batch has not come: then no process does the step."""


class Trainer(Generic[Batch]):
    """One sitting of a training: from the newest checkpoint, if there is one, to the end or to whatever stops it."""

    def __init__(self, task: Task[Batch], intervals: Intervals, outputs: Outputs) -> None:
        """Take up the newest sound checkpoint, if there is one; nothing is written.

        Raises:
            UsageError: it is of other settings, data or networks, or all are damaged.
        """
        self.task, self.intervals, self.outputs, self.state = task, intervals, outputs, task.state
        self.world = World.current()
        self.saver = Saver(task, outputs)
        self.guard = StepGuard(task.buffers)
        self.feeder = Feeder(lambda: task.batches(self.state.step), ahead=intervals.ahead)
        self.record: RunRecord | None = None
        self.throughput = Throughput()
        self.clock = time.perf_counter()
        self.progress = TrainingProgress(
            *(task.title, task.describe),
            step=self.state.step,
            total_steps=intervals.steps,
            shown=outputs.progress and self.world.first,
        )

    def fit(self) -> None:
        """Train to the last step.

        Raises:
            Interrupted: a signal came; what was learnt is saved, where checkpoints are asked for.
            MstError: whatever the batches raise, the task says or the disk refuses; what was learnt is saved.
            Exception: anything else; what was learnt is saved.
        """
        then = "saving" if self.saver.store else "stopping; nothing is saved without --checkpoints"
        notice = f"finishing this step, then {then} (Ctrl-C again: stop at once)"
        with GracefulStop(notice if self.world.first else None) as stop:  # a terminal's signal reaches all processes
            try:
                with self.progress:
                    self._begin()
                    while self.state.step < self.intervals.steps:
                        parts, waited = self._fetch(stop)
                        signalled = self.world.agree((stop.signum or 0) + (WITHOUT if parts is None else 0))
                        if parts is not None and signalled < WITHOUT:
                            self._step(parts, waited=waited)
                        if signalled and self.state.step < self.intervals.steps:
                            raise self.saver.interrupt(signalled % WITHOUT, self.intervals.steps)
                    self.saver.wait()
            except BaseException as error:
                self._pass_time()
                ended = self.saver.rescue(error, half_done=self.guard.half_done)
                if ended is error:
                    raise
                raise ended from error
            finally:
                self._close()

    def _fetch(self, stop: GracefulStop) -> tuple[list[Batch] | None, float]:
        """Return the batches of one step and the seconds waited for them; None where a signal came before them."""
        if stop.signum is not None:
            return None, 0.0
        started = time.perf_counter()
        count = self.intervals.accumulate
        try:
            parts = self.feeder.take(count, stop)
        except Exception:
            if stop.within(SIGNAL_LAG):
                return None, 0.0
            raise
        if parts is not None and len(parts) < count:
            raise ValueError(f"the batches ended at step {self.state.step} of {self.intervals.steps}")
        return parts, time.perf_counter() - started

    def _begin(self) -> None:
        """Open the record, and write what the sitting before did not come to, or what an untrained network gives."""
        self.task.collect()
        missing = self.world.from_first(self._open_record)
        if self.outputs.history and not self.saver.resumed:  # a task that may go back to where it began
            self.saver.save()
            self.saver.save_parts()
        if missing and self.intervals.evaluation_due(self.state.step):
            self._evaluate()

    def _open_record(self) -> bool:
        """Write what there is no file of yet; return whether an evaluation may be missing as well."""
        run, step = self.outputs.run, self.state.step
        if run is not None:
            done = step if self.saver.resumed else -1  # without a checkpoint even the rows of step 0 come again
            for folder in (run.root, run.previews):
                remove_asides(folder)
            self.saver.begin(run)
            self.record = RunRecord(run, step=done, tensorboard=self.outputs.tensorboard, told=self.outputs.on_row)
        missing, left = not self.saver.resumed, False
        if self.saver.resumed:
            if self.saver.store is not None:
                self.saver.store.remove_leftovers()
                left = bool(self.saver.store.discard(self.task.abandoned))
            missing = self._write_missing_rows()
        self.task.draw(missing_only=self.saver.resumed)
        if self.saver.resumed and (left or step == self.intervals.steps):
            self.task.export()
        return missing

    def _write_missing_rows(self) -> bool:
        """Write those rows of the last step that are not there; return whether its evaluation is not there either."""
        run, step = self.outputs.run, self.state.step
        if run is None or self.record is None:
            return False
        metrics, listed = (
            [row for row in read_jsonl(file) if isinstance(row, dict) and row.get("step") == step]
            for file in (run.metrics, bad_steps_file(run))
        )
        if (row := self.saver.rows.get("metrics")) and not any("loss" in found for found in metrics):
            self.record.metrics(row)
        if (row := self.saver.rows.get("bad_step")) and not listed:
            self.record.bad_step(row)
        return all("loss" in found for found in metrics)  # rows of an evaluation have none

    def _step(self, parts: list[Batch], *, waited: float) -> None:
        """Do one step and all that is due after it."""
        started = time.perf_counter()
        row_due = self.intervals.row_due(self.state.step + 1)
        with self.world.inside_step():
            report = self.guard.gradients(lambda: self.task.gradients(parts, row_due=row_due))
        if not report.skipped:
            self.task.apply(report)
        self._count(report)
        busy = time.perf_counter() - started
        self.throughput.add(images=self.intervals.batch_size, wait=waited, busy=busy)
        remarks = self.task.after_step(report, row_due=row_due)
        self.saver.rows = self._rows(report, remarks)
        self.guard.half_done = False
        if remarks.back is not None:
            self._go_back(report, remarks, remarks.back)
            return
        if self.intervals.checkpoint_due(self.state.step) or self.intervals.evaluation_due(self.state.step):
            self.task.collect()
        if self.intervals.checkpoint_due(self.state.step) and self.task.shards is not None:
            if self.record is not None:
                self.record.flush()
            self.saver.save_parts()
        if self.world.first:
            self._write(report, remarks)
        if self.intervals.evaluation_due(self.state.step):
            self._evaluate()

    def _go_back(self, report: StepReport, remarks: Remarks, back: Back) -> None:
        """Write the row of the step that was just done, then leave it and those before it for an earlier one."""
        if self.world.first:
            self._write(report, remarks, saves=False)
            if self.record is not None:
                self.record.flush()
        self.guard.half_done = True  # what is in memory is of neither history until this is over
        step = self.saver.go_back(back)
        if step is None:
            raise RunFailure(f"{self.task.title}: no checkpoint is left to go back to: {back.advice}")
        self.guard.half_done = False
        self.feeder.close()
        self.feeder = Feeder(lambda: self.task.batches(self.state.step), ahead=self.intervals.ahead)
        self.throughput.reset()
        self.task.collect()
        run = self.outputs.run
        if run is not None and self.record is not None:
            self._close_record()
            told = self.outputs.on_row
            self.record = RunRecord(run, step=step, tensorboard=self.outputs.tensorboard, told=told)
        if self.world.first:
            self.task.draw(missing_only=True)
            self.task.export()

    def _count(self, report: StepReport) -> None:
        state = self.state
        state.step += 1
        self._pass_time()
        if report.skipped:
            state.bad_steps, state.bad_streak = state.bad_steps + 1, state.bad_streak + 1
        else:
            state.bad_streak = 0

    def _rows(self, report: StepReport, remarks: Remarks) -> dict[str, dict[str, Any]]:
        """Return the rows of the step that was just done."""
        state, rows = self.state, {}
        if remarks.row is not None:
            counts = {"step": state.step, "bad_steps": state.bad_steps, "seconds": state.seconds}
            own = {**self.throughput.row(), "memory_gb": resident_memory() / 1e9}
            rows["metrics"] = {"step": None, **remarks.row, **own, **self._spread(), **counts}
        if report.skipped:
            indices = self.world.collect(report.indices.tolist())
            numbers = {name: str(value) for name, value in report.scalars().items()}
            rows["bad_step"] = {"step": state.step, **numbers, "indices": [index for each in indices for index in each]}
        return rows

    def _spread(self) -> dict[str, Any]:
        """Return how processes differ: shares of their time since the last row, and the one that others wait for."""
        if self.world.size == 1:
            return {}
        found = self.world.collect((*self.throughput.seconds(), self.world.waited))
        self.world.waited = 0.0
        if not self.world.first:  # it shows and resets its own below
            self.throughput.reset()
        batches = [wait / max(whole, 1e-9) for wait, whole, _ in found]
        others = [waited / max(whole, 1e-9) for _, whole, waited in found]
        return {
            "processes": self.world.size,
            "data_wait_most": max(batches),
            "wait_for_others_least": min(others),
            "wait_for_others_most": max(others),
            "slowest_rank": others.index(min(others)),
        }

    def _write(self, report: StepReport, remarks: Remarks, *, saves: bool = True) -> None:
        """Bring to disk what follows from a step that is done; `saves` = a checkpoint too, where one is due.

        Raises:
            RunFailure: too many steps in succession were skipped, or the task ends here.
        """
        state, intervals, rows = self.state, self.intervals, self.saver.rows
        self.progress.show(state.step, {**remarks.shown, **self.throughput.row()})
        if self.record is not None and "bad_step" in rows:
            self.record.bad_step(rows["bad_step"])
        if "metrics" in rows:
            self.throughput.reset()
            if self.record is not None:
                self.record.metrics(rows["metrics"])
        if report.skipped:
            self._tell_of_skipped(report)
        self._heed(remarks)
        if saves and intervals.checkpoint_due(state.step):
            self.task.draw(missing_only=False)
            self._pass_time()
            if self.record is not None and self.saver.saves:
                self.record.flush()
            self.saver.save()
            self.task.export()

    def _tell_of_skipped(self, report: StepReport) -> None:
        """Warn of a step that changed nothing.

        Raises:
            RunFailure: more than `max_bad_steps` in succession, or all steps of the training.
        """
        state, limit, run = self.state, self.intervals.max_bad_steps, self.outputs.run
        listing = bad_steps_file(run) if run is not None else None
        none_good = state.bad_streak == self.intervals.steps
        if state.bad_streak > limit or none_good:
            which = "all steps" if none_good else f"{state.bad_streak} steps in succession"
            most = "" if none_good else f" (at most {limit})"
            images = f"; their images are listed in {listing}" if listing else ""
            raise RunFailure(f"{which} had a loss or gradient that is not finite{most}: {self.task.too_many}{images}")
        numbers = report.scalars()
        see = f"; see {listing}" if listing else ""
        logging.warn(
            f"{self.task.title}: step {state.step} skipped: loss {numbers['loss']:g}, gradient norm "
            f"{numbers['grad_norm']:g}{see}"
        )

    def _evaluate(self) -> None:
        """Write a row with the evaluation's numbers; all processes evaluate together, the first writes and decides."""
        remarks = self.task.evaluate()
        if remarks is None or not self.world.first:
            return
        if self.record is not None and remarks.row is not None:
            self.record.metrics({"step": self.state.step, **remarks.row})
        self._heed(remarks)

    def _heed(self, remarks: Remarks) -> None:
        for warning in remarks.warnings:
            logging.warn(warning)
        if remarks.failure is not None:
            raise RunFailure(remarks.failure)

    def _pass_time(self) -> None:
        """Add the time since the last call to the run's."""
        now = time.perf_counter()
        self.state.seconds += now - self.clock
        self.clock = now

    def _close(self) -> None:
        """End the batches and the event file; neither may hide what ended the training."""
        self.feeder.close()
        self._close_record()

    def _close_record(self) -> None:
        """End the event file."""
        if self.record is not None:
            try:
                self.record.close()
            except Exception as error:
                logging.warn(f"the TensorBoard events could not be ended: {error}")
