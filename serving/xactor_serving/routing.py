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

# Portraits whose last replica is remembered. Replicas report their references within some tenths of a second.
_MAX_PORTRAITS = 32


class PortraitRouter(FIFOMixin, MultiplexMixin, RequestRouter):
    """Prefer replicas that have the portrait's reference, then the less busy of two, as Serve's own router.

    Serve's router knows of a reference only after the replica has reported it, and until then sends requests to any
    replica. A video's first window comes before that report. FIFOMixin matches requests with the replicas chosen for
    them as in Serve's router: all calls of a video share one request id, by which a plain RequestRouter would lose all
    but the first waiting call.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        # The replica that a portrait was sent to last.
        self._sent: dict[str, ReplicaID] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        name, last = "", None
        if pending_request is not None:
            name = pending_request.metadata.multiplexed_model_id
            last = self._sent.get(name)
            # Back off where no replica has room.
            pending_request.routing_context.should_backoff = True
        warm = [
            replica
            for replica in candidate_replicas
            if name in replica.multiplexed_model_ids or replica.replica_id == last
        ]
        others = [replica for replica in candidate_replicas if replica not in warm]
        return [warm, random.sample(others, min(2, len(others)))]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        if name := pending_request.metadata.multiplexed_model_id:
            self._sent.pop(name, None)
            self._sent[name] = replica_id
            if len(self._sent) > _MAX_PORTRAITS:
                del self._sent[next(iter(self._sent))]
