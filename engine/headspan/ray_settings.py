"""The settings of a run on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from headspan.errors import SettingsError

# Addresses that Ray has names for: the cluster that runs on this machine, and a new one of this machine alone.
RUNNING, LOCAL = "auto", "local"
# More workers, and more cores of one, than a cluster has.
MOST = 1 << 16


@dataclass(frozen=True, slots=True)
class Ray:
    """Compute on the nodes of a Ray cluster: `precompute(..., executor=Ray())`. Needs the extra `ray`.

    Every worker is a Ray actor with one GPU, or with some cores if the run is on CPUs. All nodes have the same versions
    and weights, and see the same store: in a shared folder, or in a bucket.
    """

    # HOST:PORT of the cluster's head, `auto` for the cluster that runs on this machine, or `local` for a new cluster of
    # this machine alone. None means the cluster of RAY_ADDRESS, else a running one, else a local one.
    address: str | None = None
    # Cores of each worker. None means an equal share of the node's cores for each GPU, and on CPUs as many as torch has
    # threads in this process.
    cpus: int | None = None
    # The largest number of workers. None means as many as the cluster has room for, now and later.
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.address is not None:
            self._check_address(self.address)
        for name in ("cpus", "workers"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) <= MOST:
                raise SettingsError(f"--ray-{name} {value} is not possible; give a whole number from 1 to {MOST:,}")
            object.__setattr__(self, name, int(value))

    @staticmethod
    def _check_address(address: str) -> None:
        if address in (RUNNING, LOCAL):
            return
        if address.startswith("ray://"):
            raise SettingsError(
                f"--ray {address} is the address of a Ray client server; run the command on a node of the cluster, as "
                "`ray job submit` does, and give HOST:PORT of the head, or no address"
            )
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isascii() or not port.isdigit() or not 1 <= int(port) < 1 << 16:
            raise SettingsError(
                f"--ray {address} is not the address of a cluster; write HOST:PORT, auto or local, or put --ray behind "
                "the shards to leave the address out"
            )
