"""Where everything lies below an output folder, and which formats it is stored in. No other module makes such a path.

<output>/features/<extractor>/extractor.json, <slice>.parquet ...
<output>/moments/<extractor>/<set of slices>.safetensors
<output>/runs/<run>/config.yaml, files.parquet, subspace.safetensors, scores/*.parquet, manifest/*.parquet,
                    rejects.parquet, report.html, run.json
<output>/latest.json
"""

from dataclasses import dataclass
from typing import Literal

from scalselect_ray.corpus.slices import SliceId
from scalselect_ray.errors import OutputError
from scalselect_ray.io import storage

Table = Literal["scores", "manifest"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The objects of one run. `run.json`, the record, is written last: a run without it is not finished."""

    uri: str

    @property
    def run_id(self) -> str:
        return self.uri.rpartition("/")[2]

    @property
    def config(self) -> str:
        """The config as the run has read it."""
        return storage.join(self.uri, "config.yaml")

    @property
    def files(self) -> str:
        """The files of the corpus that the run was made of."""
        return storage.join(self.uri, "files.parquet")

    @property
    def subspace(self) -> str:
        return storage.join(self.uri, "subspace.safetensors")

    def table(self, name: Table) -> str:
        """The folder with the part files of a table."""
        return storage.join(self.uri, name)

    def part(self, name: Table, index: int) -> str:
        """One part file of a table; parts sort as their indices do."""
        return storage.join(self.uri, name, f"{index:05d}.parquet")

    def parts(self, name: Table) -> list[str]:
        """The part files of a table that are there, in order. Raises StorageError."""
        return [storage.join(self.table(name), file) for file in storage.list_names(self.table(name))]

    @property
    def text_only(self) -> str:
        """The last part file of the manifest, where text-only samples are kept."""
        return storage.join(self.table("manifest"), "text-only.parquet")

    @property
    def rejects(self) -> str:
        return storage.join(self.uri, "rejects.parquet")

    @property
    def report(self) -> str:
        return storage.join(self.uri, "report.html")

    def comparison(self, other_run_id: str) -> str:
        """The page of this run beside another."""
        return storage.join(self.uri, f"compared-with-{other_run_id}.html")

    @property
    def record(self) -> str:
        return storage.join(self.uri, "run.json")


@dataclass(frozen=True, slots=True)
class Output:
    """An output folder, local or in a bucket. Holds only a string: it may travel to any worker."""

    uri: str

    @property
    def latest(self) -> str:
        """Names the newest finished run."""
        return storage.join(self.uri, "latest.json")

    @property
    def runs(self) -> str:
        return storage.join(self.uri, "runs")

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(storage.join(self.runs, run_id))

    def extractors(self) -> list[str]:
        """Ids of all extractors with features here. Raises StorageError."""
        return storage.list_folders(storage.join(self.uri, "features"))

    def features(self, extractor_id: str) -> str:
        """The folder of an extractor's feature files."""
        return storage.join(self.uri, "features", extractor_id)

    def feature_file(self, extractor_id: str, slice_id: SliceId) -> str:
        return storage.join(self.features(extractor_id), f"{slice_id}.parquet")

    def extractor(self, extractor_id: str) -> str:
        """What an extractor is, for people."""
        return storage.join(self.features(extractor_id), "extractor.json")

    def moments(self, extractor_id: str) -> str:
        """The folder of an extractor's merged moments."""
        return storage.join(self.uri, "moments", extractor_id)

    def moments_file(self, extractor_id: str, set_id: str) -> str:
        return storage.join(self.moments(extractor_id), f"{set_id}.safetensors")


FORMATS = {
    "run": 1,  # run.json, read by `record`; another version is refused
    "features": 2,  # feature files, read by `features`; another version is refused: its extractor has another id anyway
    "moments": 3,  # merged moments, read by `moments`; an earlier version is made anew from the feature files
    "subspace": 1,  # the subspace of a run, read by `subspace`; another version is refused
    "scores": 1,  # tables of a run, read by `tables`; another version is refused
    "manifest": 1,
    "rejects": 1,
    "files": 1,
    "export": 1,  # export.json, read by `exports.flow`; another version is refused
}
"""The version that is written of each stored format, who reads it, and what happens to another version."""


def format_name(kind: str) -> str:
    """What an object of this kind says of itself, such as scalselect.run/1."""
    return f"scalselect.{kind}/{FORMATS[kind]}"


def check_format(kind: str, found: object, uri: str) -> None:
    """That an object of ours is of the version that is read here. Raises OutputError that names both."""
    if found != format_name(kind):
        raise OutputError(
            f"{uri} is of the format {found}, and this version of scalselect reads {format_name(kind)}: use the "
            "version that wrote it, or another output folder"
        )
