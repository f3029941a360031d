"""What must hold on every machine of a cluster before anything is paid for."""

import os
from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scalselect_ray.cluster.waiting import missing_resources
from scalselect_ray.config import JobConfig, WorkersConfig
from scalselect_ray.corpus import CorpusFile
from scalselect_ray.errors import ConfigError, CorpusError, ModelError, OutputError
from scalselect_ray.io import storage
from scalselect_ray.store.features import FeatureStore


def check_resources(workers: WorkersConfig, may_grow: bool) -> None:
    """That the cluster has what the workers ask for, or may still get it. Raises ConfigError."""
    missing = missing_resources(workers)
    if missing and not may_grow:
        raise ConfigError(
            f"this machine has not {' and not '.join(missing)}: change these keys, or give RAY_ADDRESS, the address "
            "of a cluster"
        )


def check_shared(config: JobConfig, files: Sequence[CorpusFile], store: FeatureStore) -> None:
    """Local paths must mean the same on every node that works: what one node commits to its own disk, no other would
    find.

    Raises OutputError, ModelError, CorpusError with the node's address.
    """
    first_files = {file.source: file.file.uri for file in reversed(files)}
    roots = {source.name: source.image_root for source in config.corpus.sources}
    seen = [
        (OutputError, "output", storage.join(store.folder, "extractor.json")),
        (ModelError, "extractor.model", config.extractor.model),
        *((CorpusError, f"the corpus of source '{source}'", uri) for source, uri in first_files.items()),
        *((CorpusError, "corpus.image_links", folder) for folder in config.corpus.image_links),
        *((CorpusError, f"image_root of source '{name}'", root) for name, root in roots.items() if root),
    ]
    local = [item for item in seen if storage.is_local(item[2]) and os.path.exists(item[2])]
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) < 2 or not local:
        return
    for node, missing in zip(
        nodes, missing_by_node([node["NodeID"] for node in nodes], [path for _, _, path in local]), strict=True
    ):
        for error, what, path in local:
            if path in missing:
                raise error(
                    f"{what}: {path} is not there on the node {node['NodeManagerAddress']}; on a cluster use a "
                    "bucket, or a folder that all nodes share"
                )


def missing_by_node(node_ids: Sequence[str], paths: Sequence[str]) -> list[set[str]]:
    """Which of the local `paths` do not exist on each node."""
    return [
        set(missing)
        for missing in ray.get(
            [
                _missing.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                    list(paths)
                )
                for node in node_ids
            ]
        )
    ]


@ray.remote(num_cpus=0)
def _missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
