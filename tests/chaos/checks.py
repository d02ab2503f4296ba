"""The checks of a chaos run: they watch while it goes on, and judge at the end.

What watches stays outside of the faults: the witness hears tasks by a socket of the machine, the observer reads etcd
from a place of the network of its own, processes are looked at through /proc. The judgements themselves are pure, and
in files of their own: `verdicts.py`, `acts.py` (ends), `pattern.py` (logs), `upkeep.py`, `tests/support/history.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pilfer import PilferError, Task
from tests.chaos import verdicts
from tests.chaos.forgetting import KEEP_S
from tests.chaos.load import Load
from tests.chaos.upkeep import Upkeep
from tests.support.lab import CPU, Lab
from tests.support.wait import wait_until_sync

OBSERVER = "observer"
EVERY_S = 2.0
#: Beats that are kept on the disk; the runs are all kept in memory.
BEATS_BYTES = 64 * 1024 * 1024
#: The observer's own limit is a minute.
JUDGED_WITHIN_S = 90.0
LISTED_WITHIN_S = 60.0
#: What ended within so long before a recovery is demanded after it: retention keeps several times as much.
RECENT_S = 240.0
#: Of the judgement of the history, in the summary: what is told elsewhere, or says only how it is at the end.
LEFT_OUT = ("flaws", "tasks", "revision", "requeued")
#: Of the history, what may be compacted before it was read: over a gap less can be judged. In an hour under a load of
#: 10 to 30 there was none.
TORN_SHARE = 0.05
#: Seen to have ended so lately that it cannot be forgotten yet.
UNFORGOTTEN_S = KEEP_S - 15.0


class Checks:
    """Watches from `start` to `finish`. `start` is called by the thread that made the lab."""

    def __init__(
        self, lab: Lab, load: Load, tell: Callable[[str], None], *, deaths: Mapping[str, float] | None = None
    ) -> None:
        """deaths: which node ids were killed, and when; it may grow while this watches."""
        self.lab = lab
        self.load = load
        self._tell = tell
        self.directory = lab.directory / "checks"
        self.upkeep = Upkeep(lab)
        self._deaths = deaths if deaths is not None else {}
        #: When an operator went back to older data.
        self.epochs: list[float] = []
        #: After the last recovery: for what reason, and what must be there as soon as the cluster answers.
        self._demanded: tuple[str, set[str]] | None = None
        self.judgement: dict[str, object] = {}
        self._found: list[str] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._observer: subprocess.Popen[str] | None = None
        self._threads: list[threading.Thread] = []

    # For the runner

    def start(self) -> None:
        """Follows etcd's history, the beats and the processes from now on."""
        self.directory.mkdir()
        place = self.lab.network.add(OBSERVER)
        with (self.directory / "observer.log").open("w") as log:
            self._observer = subprocess.Popen(
                place.command(sys.executable, "-m", "tests.chaos.observer", str(self.directory)),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self._tell_voters()
        for run in (self._read_observer, self._watch):
            thread = threading.Thread(target=run, name=f"checks {run.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self.upkeep.start()

    def new_epoch(self, reason: str) -> None:
        """An operator recovers the cluster: what was acknowledged before load.pause() must still be there, and all
        else begins anew. To be called between load.pause() and load.resume(), while no etcd runs: revisions and
        attempts of what comes may have the numbers of what is lost."""
        self.epochs.append(time.monotonic())
        self.load.epoch += 1
        self._command({"epoch": reason})
        ledger = self.load.ledger
        self._demanded = reason, {*ledger.open(), *ledger.ended_since(self.load.gate.shut_at - RECENT_S)}

    def flaws_so_far(self) -> list[str]:
        """What has been found by now: a run may end early on it."""
        with self._lock:
            return [*self._found, *self.load.ledger.flaws]

    def finish(self) -> list[str]:
        """Flaws. After load.stop(), healing, and when all tasks have ended; before the lab ends. Stops watching."""
        self.load.finish()
        self._stopped.set()
        self.upkeep.stop()
        ledger, runs = self.load.ledger, self.lab.witness.look()
        flaws = verdicts.flaws_of_runs(runs, self.epochs, CPU, ledger.cpu_of)
        flaws += verdicts.flaws_of_bounds(runs, self.epochs, ledger.runs_max_of)
        flaws += verdicts.flaws_of_ends(runs, ledger.beating_complete)
        flaws += verdicts.flaws_of_cancels(runs, ledger.cancels)
        flaws += verdicts.flaws_of_deaths(runs, self._deaths)
        flaws += [
            f"SubmittedIsEnded: task {task_id} ({entry.act.kind}) was acknowledged, and its end was not seen"
            for task_id, entry in ledger.open().items()
        ]
        flaws += [
            f"NothingLost: task {task_id} was acknowledged, and what became of it is not known"
            for task_id in sorted(ledger.lost())
        ]
        self._demand()
        if self._demanded is not None:
            flaws.append(f"NothingLost: the tasks could not be listed any more after {self._demanded[0]}")
        flaws += self._judge_listing()
        flaws += self._judge_history()
        flaws += self.upkeep.flaws()
        if not runs.beats or not ledger.ended_count:
            flaws.append("the instrument: nothing ran at all")
        self._add(flaws)
        return verdicts.told(self.flaws_so_far())

    def summary(self) -> str:
        """What was seen, in one line."""
        runs = self.lab.witness.runs
        history = {name: value for name, value in self.judgement.items() if name not in LEFT_OUT}
        late_s = max(verdicts.lingering(runs, self._deaths).values(), default=0.0)
        heard = (
            f"{len(runs.by_task)} tasks heard, {runs.beats} beats, {len(self._deaths)} nodes killed under them "
            f"(heard for {late_s:.2f} s after that at most)"
        )
        return f"{self.load.summary()}; {heard}; history: {history}; {self.upkeep.summary()}"

    # Watching

    def _watch(self) -> None:
        while not self._stopped.wait(EVERY_S):
            self.lab.witness.look()
            self.lab.witness.forget(BEATS_BYTES)
            self._tell_voters()
            self._demand()

    def _demand(self) -> None:
        """After a recovery, once the cluster answers."""
        if self._demanded is None:
            return
        try:
            with self.lab.any_node().client(patience_s=0.0) as client:
                there = {task.id for task in client.list()}
        except (PilferError, StopIteration):
            return
        (reason, wanted), self._demanded = self._demanded, None
        self._add([f"NothingLost: task {task_id} is not there after {reason}" for task_id in sorted(wanted - there)])

    def _tell_voters(self) -> None:
        """Whose etcd there is, and a directory with a certificate that it takes."""
        voters = []
        for node in self.lab.up():
            port = node.etcd_port
            if port is not None:
                voters.append([f"{node.place.address}:{port}", str(node.data_dir / "pki")])
        self._command({"voters": voters})

    def _command(self, command: dict[str, object]) -> None:
        assert self._observer is not None
        assert self._observer.stdin is not None
        with self._lock:
            try:
                self._observer.stdin.write(json.dumps(command) + "\n")
                self._observer.stdin.flush()
            except OSError as error:
                self._found.append(f"the instrument: the observer takes no commands: {error}")

    def _read_observer(self) -> None:
        assert self._observer is not None
        assert self._observer.stdout is not None
        for line in self._observer.stdout:
            match json.loads(line):
                case {"flaw": str(words)}:
                    self._tell(f"found: {words}")
                    self._add([words])
                case {"gap": str(words)}:
                    self._tell(f"history: {words}")
                case {"judgement": dict(judgement)}:
                    self.judgement = judgement

    def _add(self, flaws: list[str]) -> None:
        with self._lock:
            self._found += [flaw for flaw in flaws if flaw not in self._found]

    # The end

    def _list(self) -> list[Task] | None:
        """Every task that the cluster knows; None where it cannot be listed (which is a flaw)."""
        found: list[Task] = []

        def is_listed() -> bool:
            try:
                with self.lab.any_node().client(patience_s=5.0) as client:
                    found[:] = client.list()
            except (PilferError, StopIteration):
                return False
            return True

        try:
            wait_until_sync(is_listed, LISTED_WITHIN_S, what="the tasks are listed", every_s=0.5)
        except AssertionError as error:
            self._add([f"SubmittedIsEnded: {error}"])
            return None
        return found

    def _judge_listing(self) -> list[str]:
        ledger = self.load.ledger
        wanted = ledger.ended_since(time.monotonic() - UNFORGOTTEN_S) + list(ledger.open())
        listed = self._list()
        if listed is None:
            return []
        return verdicts.flaws_of_listing(listed, wanted, ledger.all_tried(), strangers=set(self.lab.submitted))

    def _judge_history(self) -> list[str]:
        assert self._observer is not None
        ids = self.directory / "ids"
        ids.write_text("\n".join(self.load.ledger.ended_since(time.monotonic() - UNFORGOTTEN_S)))
        self._command({"finish": str(ids)})
        try:
            code = self._observer.wait(JUDGED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._observer.kill()
            self._observer.wait()
            return ["the instrument: the observer does not end"]
        finally:
            for thread in self._threads:
                thread.join(10.0)
            for pipe in filter(None, (self._observer.stdin, self._observer.stdout)):
                pipe.close()
        torn, read = self.judgement.get("torn", 0), self.judgement.get("revisions", 0)
        if isinstance(torn, int) and isinstance(read, int) and torn > TORN_SHARE * (torn + read):
            self._add([f"the instrument: {torn} revisions could not be read, and {read} could"])
        log = (self.directory / "observer.log").read_text()
        return [] if code == 0 else [f"the instrument: the observer ended with {code}: {log[-2000:]}"]


def history_files(checks: Checks) -> list[Path]:
    return sorted(checks.directory.glob("history.*.jsonl"))
