"""Route a portrait's windows to the render replica that has its reference."""

import random
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

# Maximum number of portraits whose last replica is remembered. A few suffice, because a replica reports a new reference
# within some tenths of a second.
_MAX_PORTRAITS = 32


class PortraitRouter(FIFOMixin, MultiplexMixin, RequestRouter):
    """Prefer replicas that have the portrait's reference. If these are full, take the less busy of two random others.

    A reference holds the features that the renderer copies from a portrait. For Serve, a reference is a multiplexed
    model whose id is the portrait's name.

    Serve's own router knows about a reference only after a replica has reported it. Until then that router sends calls
    to any replica, and a video's first window comes before the report. Therefore this router also remembers the replica
    that got a portrait's last call.

    FIFOMixin assigns the chosen replicas to the waiting calls in order, as in Serve's router. A plain RequestRouter
    finds the waiting call by its request id. All calls of a video share one id, so a plain RequestRouter would lose all
    waiting calls except the first.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        # The replica that got a portrait's last call, by the portrait's name; the oldest entry first.
        self._last_replica: dict[str, ReplicaID] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return two groups of replicas: first those that have or compute the reference, then two others."""
        name, last_replica = "", None
        if pending_request is not None:
            name = pending_request.metadata.multiplexed_model_id
            last_replica = self._last_replica.get(name)
            # Wait before the next attempt if no replica has room.
            pending_request.routing_context.should_backoff = True
        warm = [
            replica
            for replica in candidate_replicas
            if name in replica.multiplexed_model_ids or replica.replica_id == last_replica
        ]
        others = [replica for replica in candidate_replicas if replica not in warm]
        return [warm, random.sample(others, min(2, len(others)))]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        if name := pending_request.metadata.multiplexed_model_id:
            self._last_replica.pop(name, None)
            self._last_replica[name] = replica_id
            if len(self._last_replica) > _MAX_PORTRAITS:
                del self._last_replica[next(iter(self._last_replica))]
