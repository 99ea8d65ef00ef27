"""Which render replica a portrait's windows go to: where its reference is, or is being made."""

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

_REMEMBERED = 32  # portraits: until their replicas have said that they know them, some tenths of a second


class PortraitRouter(FIFOMixin, MultiplexMixin, RequestRouter):
    """Replicas that know the portrait first; then the less busy of two, as Serve's own router.

    Serve's own hears of a reference when the replica that has made it says so, and sends what comes sooner to any: a
    video's first window comes sooner. Requests are matched with the replicas found for them as in Serve's own: all of a
    video's calls have one id, by which a bare RequestRouter would lose all but the first that wait.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        self._sent: dict[str, ReplicaID] = {}  # where a portrait went last

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        name, last = "", None
        if pending_request is not None:
            name = pending_request.metadata.multiplexed_model_id
            last = self._sent.get(name)
            pending_request.routing_context.should_backoff = True  # where none of them has room
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
            if len(self._sent) > _REMEMBERED:
                del self._sent[next(iter(self._sent))]
