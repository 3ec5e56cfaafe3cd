"""The workers at work now, looked for again and again: whoever has said that it ended is not read a second time."""

from pathlib import Path

from gift_generate.workers.heartbeat import AT_WORK, HeartbeatIntervals, Liveness, ObservedWorker


class LiveWorkers:
    """The live workers of an output folder. A look costs a listing and a file for each of them, however many there were before."""

    def __init__(self, out: Path, intervals: HeartbeatIntervals) -> None:
        self._out = out
        self._intervals = intervals
        self._ended: set[str] = set()

    def look(self) -> list[ObservedWorker]:
        """As of now."""
        seen = Liveness(self._out, self._intervals).workers(but=self._ended)
        self._ended |= {worker.record.worker for worker in seen if worker.record.state not in AT_WORK}
        return [worker for worker in seen if worker.is_live]
