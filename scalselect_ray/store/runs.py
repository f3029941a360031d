"""The runs below an output folder. A run is finished when its `run.json`, written last, is there."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from scalselect_ray.errors import OutputError
from scalselect_ray.io import storage
from scalselect_ray.store import record as records
from scalselect_ray.store.layout import Output, RunFolder
from scalselect_ray.store.record import RunRecord

_RUN_ID = re.compile(r"^\d{8}T\d{9}Z-[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs are known by their ids, which sort by the time they began, in milliseconds; a tail tells apart runs of the
    same moment."""

    output: Output

    def names(self) -> list[str]:
        """Ids of all runs, finished or not, oldest first."""
        return [name for name in storage.list_folders(self.output.runs) if _RUN_ID.match(name)]

    def new_id(self, now: datetime, tail: str) -> str:
        """The id of a run that begins now, greater than that of every run there is: a clock that went back must not
        hide it."""
        for newest in self.names()[-1:]:
            now = max(now, self.began(newest) + timedelta(milliseconds=1))
        return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z-{tail}"

    def folder(self, run_id: str) -> RunFolder:
        return self.output.run(run_id)

    def began(self, run_id: str) -> datetime:
        """When a run began."""
        return datetime.strptime(run_id[:18], "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)

    def is_finished(self, run_id: str) -> bool:
        """Whether the run's record is there, of whatever version."""
        return bool(read_object(self.folder(run_id).record))

    def record(self, run_id: str) -> RunRecord | None:
        """What `run.json` says; None when the run is not finished. Raises OutputError for a record of another
        version."""
        uri = self.folder(run_id).record
        stored = read_object(uri)
        return RunRecord.from_json(stored, uri) if stored else None

    def latest(self) -> str | None:
        """Id of the newest finished run."""
        return read_object(self.output.latest).get("run_id")

    def find(self, name: str) -> RunRecord:
        """What `run.json` of a finished run says; `name` is its id, or latest. Raises OutputError."""
        run_id, known = self.latest() if name == "latest" else name, self.names()
        record = self.record(run_id) if run_id in known else None
        if record is None:
            finished = [other for other in known[::-1][:20] if self.is_finished(other)]
            has = f"finished runs, newest first: {', '.join(finished)}" if finished else "it has no finished run"
            state = "is not finished" if run_id in known else "is not there"
            raise OutputError(f"{self.output.uri}: run {name} {state}; {has}; give the `output` of a config")
        return record

    def latest_with(self, extractor_id: str) -> RunRecord | None:
        """The newest finished run, where it is one of this extractor: what a new run is compared with."""
        latest = self.latest()
        record = self.record(latest) if latest else None
        return record if record is not None and record.extractor == extractor_id else None

    def finish(self, record: RunRecord) -> None:
        """Commits a run whose other objects are all written."""
        storage.write(self.folder(record.run_id).record, records.to_bytes(record))
        self._move_latest(record.run_id)

    def _move_latest(self, run_id: str) -> None:
        """Points `latest.json` to a run that is finished, unless a newer one is.

        Two runs that end at once both look again after they have written: whoever writes last has seen the other's
        `run.json`."""
        while True:
            newest = next((name for name in reversed(self.names()) if name <= run_id or self.is_finished(name)), run_id)
            newest = max(newest, run_id)
            if (self.latest() or "") >= newest:
                return
            storage.write(self.output.latest, json.dumps({"run_id": newest}).encode())
            run_id = newest


def read_object(uri: str) -> dict[str, Any]:
    """A JSON object; empty when the file is not there or is none."""
    try:
        found = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
