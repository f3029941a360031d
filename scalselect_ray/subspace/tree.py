"""The shape of the reduce: which leaves there are and what is merged with what. Pure, so that a result never depends on
timing."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def consecutive_groups(rows: Sequence[int], group_rows: int) -> list[range]:
    """Runs of consecutive items that hold at least `group_rows` rows each (the last may hold fewer)."""
    groups: list[range] = []
    start = total = 0
    for index, count in enumerate(rows):
        total += count
        if total >= group_rows or index == len(rows) - 1:
            groups.append(range(start, index + 1))
            start, total = index + 1, 0
    return groups


class MergeTree:
    """Says, as results arrive in any order, which `fan_in` neighbours can be merged now. A node is (level, index)."""

    def __init__(self, leaves: int, fan_in: int) -> None:
        self._fan_in = fan_in
        self._widths = [leaves]
        while self._widths[-1] > 1:
            self._widths.append(-(-self._widths[-1] // fan_in))
        self._arrived: set[tuple[int, int]] = set()

    @property
    def root(self) -> tuple[int, int]:
        return len(self._widths) - 1, 0

    def arrive(self, node: tuple[int, int]) -> tuple[tuple[int, int], list[tuple[int, int]]] | None:
        """The parent of `node` and its children in order, once the last child has arrived; else None."""
        self._arrived.add(node)
        level, index = node
        if node == self.root:
            return None
        first = index // self._fan_in * self._fan_in
        children = [(level, child) for child in range(first, min(first + self._fan_in, self._widths[level]))]
        if not self._arrived.issuperset(children):
            return None
        self._arrived.difference_update(children)
        return (level + 1, index // self._fan_in), children
