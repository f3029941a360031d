"""The errors people see, and the exit code each one means.

ScalSelectError            an error with a message for people: no traceback is shown
├── ConfigError            the config cannot be used                              exit 2
├── CorpusError            the corpus cannot be found, listed or read             exit 2
├── ModelError             the model cannot be found, loaded or used              exit 2
├── OutputError            the output folder cannot be used                       exit 2
│   └── DamagedObjectError     a committed object is not what was written         exit 2
├── StorageError           a disk or an object store fails on and on              exit 1
│   └── NoPermissionError      it refuses                                         exit 2
├── ClusterError           Ray cannot be started or joined, or fails on and on    exit 1
└── TooManyRejectsError    more rejected samples than `rejects.max_fraction`      exit 3

A sample that cannot be used is not an error of the run: see `scalselect_ray.corpus.SampleRejectedError`.
"""


class ScalSelectError(Exception):
    """What was found, what was expected, where, and the next move, in one message."""

    exit_code = 2


class ConfigError(ScalSelectError):
    """The config cannot be used as it stands."""


class CorpusError(ScalSelectError):
    """The corpus, or a place it points to, cannot be read."""


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


class NoPermissionError(StorageError, PermissionError):
    """A disk or an object store refuses."""

    exit_code = 2


class DamagedObjectError(OutputError):
    """A committed object of ours that is not what was written. A run removes it and makes it anew."""

    def __init__(self, uri: str, problem: str) -> None:
        super().__init__(uri, problem)
        self.uri = uri
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.uri} is damaged ({self.problem}): run again, and it is made anew"


class TooManyRejectsError(ScalSelectError):
    """The share of rejected samples is above `rejects.max_fraction`."""

    exit_code = 3
