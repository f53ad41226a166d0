"""A program with a Ray cluster of several nodes on this machine: each line of its input adds a node or kills one.

Prints the cluster's address, and then the identifier of each node that it adds. `add` starts a node of one core;
`kill ID` ends all processes of a node with SIGKILL, as the loss of a computer would.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

# A machine that is busy takes long to start a node.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "240"}

from ray.cluster_utils import Cluster


def descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and theirs."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def main() -> None:
    """Carry out orders until the input ends."""
    # Its head has no core for workers: the driver's node is not killed.
    small = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    print(cluster.address, flush=True)
    nodes = {}
    for line in sys.stdin:
        order, _, name = line.strip().partition(" ")
        if order == "add":
            node = cluster.add_node(num_cpus=1, **small)
            nodes[node.node_id] = node
            print(node.node_id, flush=True)
        else:
            node = nodes.pop(name)
            pids = [info.process.pid for infos in node.all_processes.values() for info in infos]
            for each in [*pids, *(child for pid in pids for child in descendants(pid))]:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            cluster.remove_node(node, allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
