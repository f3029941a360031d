"""The flow of one selection, from top to bottom.

corpus -> plan -> slices without features -> read, prepare, extract, commit -> features -> tree reduce -> subspace
       -> scores -> manifest
"""

from collections.abc import Iterator
from contextlib import contextmanager

from scalselect_ray.cluster.metrics import Stages
from scalselect_ray.cluster.preflight import check_resources, check_shared
from scalselect_ray.cluster.session import cluster_gpus, own_errors, session
from scalselect_ray.config import JobConfig
from scalselect_ray.console import Console
from scalselect_ray.corpus import check_filters, list_corpus
from scalselect_ray.corpus.location import check_apart, check_links, check_told
from scalselect_ray.errors import DamagedObjectError, NoAnswerError, OutputError, StorageError
from scalselect_ray.io import storage
from scalselect_ray.stages.context import Job
from scalselect_ray.stages.extract import extract
from scalselect_ray.stages.finish import finish
from scalselect_ray.stages.plan import plan
from scalselect_ray.stages.reduce import reduce
from scalselect_ray.stages.score import score
from scalselect_ray.stages.select import select
from scalselect_ray.store.features import FeatureStore, find_store
from scalselect_ray.store.layout import Output
from scalselect_ray.store.record import RunRecord
from scalselect_ray.vlm.representer import description_of, earlier_id, id_of, make_preparer, slow_on_cpu, try_model


def run(config: JobConfig, console: Console | None = None) -> RunRecord:
    """One selection, finished and committed. What is found damaged on the way is removed and made anew, once.

    Raises ScalSelectError with the exit code of its kind.
    """
    console = console or Console()
    check_told(config.corpus)
    corpus = list_corpus(config.corpus)  # a wrong path is told before a model is fetched and read
    check_links(config.output, corpus)
    for source, kept in check_filters(corpus.files).items():
        console.note(f"{source}: {kept}")
    store = open_store(config, console)
    mended: set[str] = set()
    with session(console) as may_grow:
        check_resources(config.workers, may_grow)
        check_shared(config, corpus.files, store)
        slow = slow_on_cpu(config.extractor)
        if slow and not (cluster_gpus() or config.workers.gpus_per_extractor):
            console.warn(slow)
        while True:
            try:
                with own_errors():
                    return _run(Job(config, store, console, Stages(console)))
            except DamagedObjectError as error:
                if mended.intersection(error.damage):
                    raise
                mended.update(error.damage)
                for uri, problem in error.damage.items():
                    console.warn(f"{uri} is damaged ({problem}): it is removed and made anew")
                storage.delete(error.damage)


def _run(job: Job) -> RunRecord:
    run = extract(job, plan(job))
    reduced = reduce(job, run)
    scores = score(job, run, reduced)
    selection = select(job, run, scores)
    return finish(job, run, reduced, scores, selection)


def open_store(config: JobConfig, console: Console) -> FeatureStore:
    """The feature store of the config's extractor, described there. Raises ModelError, OutputError."""
    check_apart(config.output, config.corpus)
    with _usable_output():
        storage.check_folder(config.output)
    preparer = make_preparer(config.extractor)  # fails now or in every worker
    for line in preparer.filled:
        console.note(f"extractor.model: {line}")
    description = description_of(config.extractor)

    def earlier() -> str | None:
        return None if preparer.blanks_are_answers else earlier_id(config.extractor)

    with _usable_output():
        store = find_store(Output(config.output), id_of(description), description, earlier)
    if not store.is_described():  # what is, was tried
        try_model(config.extractor, preparer)
    with _usable_output():
        store.describe({"model": config.extractor.model, **description})
    return store


@contextmanager
def _usable_output() -> Iterator[None]:
    """Before any work it is the place that cannot be used, whatever its trouble is."""
    try:
        yield
    except NoAnswerError:
        raise
    except StorageError as error:
        raise OutputError(f"output: {error}") from error
