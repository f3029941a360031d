"""Nodes that an autoscaler can start on this machine."""

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Provider(FakeMultiNodeProvider):
    """Ray's own fake nodes, of node types that may say how much memory they have."""

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        started = {name: amount for name, amount in resources.items() if name != "memory"}  # a node finds out its own
        super().create_node_with_resources_and_labels(node_config, tags, count, started, labels)
