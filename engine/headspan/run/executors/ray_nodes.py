"""Decide how many workers each node of a cluster has room for, and where the next ones start.

Nothing here needs Ray.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive: Ray's identifier, its address for messages, and what it offers in all."""

    id: str
    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Share:
    """What each worker needs."""

    on_gpu: bool
    # Cores; None means an equal share for each GPU of a node.
    cpus: int | None
    # Whether a node with fewer cores may have a worker, which then takes all of them.
    flexible: bool = False

    def cpus_on(self, node: Node) -> int:
        """The cores of a worker on `node`."""
        if self.cpus is None:
            return int(node.cpus // max(1, math.floor(node.gpus)))
        return min(self.cpus, max(1, int(node.cpus))) if self.flexible else self.cpus

    def room(self, node: Node) -> int:
        """How many workers `node` has room for, if nobody else uses it."""
        cpus = self.cpus_on(node)
        by_cpus = int(node.cpus // cpus) if cpus else None
        by_gpus = math.floor(node.gpus) if self.on_gpu else None
        return min(count for count in (by_cpus, by_gpus) if count is not None)


def openings(
    nodes: Sequence[Node], share: Share, running: Mapping[str, int], left_out: Collection[str], wanted: int
) -> list[Node]:
    """Where to start workers, so that there are `wanted` in all: on the nodes with the fewest first.

    `running` counts the workers of each node by its id; a node may be named several times.
    """
    counts = {node.id: running.get(node.id, 0) for node in nodes}
    chosen: list[Node] = []
    while sum(running.values()) + len(chosen) < wanted:
        free = [node for node in nodes if node.id not in left_out and counts[node.id] < share.room(node)]
        if not free:
            break
        node = min(free, key=lambda node: counts[node.id])
        counts[node.id] += 1
        chosen.append(node)
    return chosen
