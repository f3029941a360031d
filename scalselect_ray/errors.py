"""The errors people see, and the exit code each one means.

ScalSelectError            an error with a message for people: no traceback is shown
├── ConfigError            the config cannot be used                              exit 2
├── CorpusError            the corpus cannot be found, listed or read             exit 2
│   └── CorpusChangedError     files changed while they were read                 exit 2
├── ModelError             the model cannot be found, loaded or used              exit 2
├── OutputError            the output folder cannot be used                       exit 2
│   └── DamagedObjectError     a committed object is not what was written         exit 2
├── StorageError           a disk or an object store fails on and on              exit 1
│   ├── NoAnswerError          a store takes the question and never answers       exit 1
│   └── NoPermissionError      it refuses                                         exit 2
├── ClusterError           Ray cannot be started or joined, or fails on and on    exit 1
└── TooManyRejectsError    more rejected samples than `rejects.max_fraction`      exit 3

A sample that cannot be used is not an error of the run: see `scalselect_ray.corpus.SampleRejectedError`.
"""

from collections.abc import Mapping, Sequence

from scalselect_ray.redaction import redact


class ScalSelectError(Exception):
    """What was found, what was expected, where, and the next move: the lines of a message, most often one. None holds
    a secret of a URI that the message names."""

    exit_code = 2

    def message(self) -> Sequence[str]:
        """The lines as they were made."""
        return list(map(str, self.args))

    @property
    def lines(self) -> list[str]:
        """The lines for people."""
        made = self.message()
        return [redact(line, " ".join(made)) for line in made]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class ConfigError(ScalSelectError):
    """The config cannot be used as it stands."""


class CorpusError(ScalSelectError):
    """The corpus, or a place it points to, cannot be read."""


class CorpusChangedError(CorpusError):
    """Files of the corpus that are gone, or other versions than the run had listed. A run lists and plans them anew
    once."""

    def __init__(self, uris: Sequence[str]) -> None:
        super().__init__(uris)
        self.uris = list(uris)

    def message(self) -> Sequence[str]:
        more = f" and {len(self.uris) - 1:,} more files" if len(self.uris) > 1 else ""
        return [
            f"{self.uris[0]}{more} changed or went away while the corpus was read: run again once nobody "
            "writes there; what is committed stays"
        ]


class ModelError(ScalSelectError):
    """The model folder or hub id cannot be used."""


class OutputError(ScalSelectError):
    """The output folder cannot be written, or what lies there is not ours."""


class ClusterError(ScalSelectError):
    """Ray cannot be started or joined, or machines, processes or devices fail again and again. What is committed
    stays."""

    exit_code = 1


class StorageError(ScalSelectError, OSError):
    """A disk or an object store does not answer, or cannot take what is written, after all patience. What is committed
    stays."""

    exit_code = 1


class NoAnswerError(StorageError):
    """An object store takes the question and never answers."""


class NoPermissionError(StorageError, PermissionError):
    """A disk or an object store refuses."""

    exit_code = 2


class DamagedObjectError(OutputError):
    """Committed objects of ours that are not what was written. A run removes them and makes them anew.

    `damage` is what is wrong with each, by URI.
    """

    def __init__(self, uri: str, problem: str, others: Mapping[str, str] | None = None) -> None:
        super().__init__(uri, problem, others)
        self.damage = {uri: problem, **(others or {})}

    def message(self) -> Sequence[str]:
        (uri, problem), more = next(iter(self.damage.items())), len(self.damage) - 1
        others = f", and {more:,} more objects are" if more else ""
        return [f"{uri} is damaged ({problem}){others}: run again, and what is damaged is made anew"]


class TooManyRejectsError(ScalSelectError):
    """The share of rejected samples is above `rejects.max_fraction`."""

    exit_code = 3
