"""Bound what clients may hold: connections whose request has not arrived yet, and videos in progress.

A client takes a place before its upload or its first message is read. The place becomes a video when the request has
arrived. So a client that sends nothing keeps no video of another client from being made.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from xactor_serving.arguments import Limits
from xactor_serving.errors import ending, full, too_many
from xactor_serving.metrics import metrics


@dataclass(frozen=True)
class Client:
    """Name a client whose places are counted together."""

    name: str
    """The client's key, or its network address if it has shown no key."""
    admitted: bool
    """Whether the client has shown an accepted key, or no key is needed."""

    @classmethod
    def of(cls, scope: MutableMapping[str, Any], key: str, *, admitted: bool) -> "Client":
        """Return the client of a connection.

        Args:
            scope: The connection's ASGI scope.
            key: The accepted key; empty if there is none.
            admitted: See the class.
        """
        address = (scope.get("client") or ("",))[0]
        return cls(f"key {key}" if key else f"address {address}", admitted)


class Places:
    """Count the places of all clients of one ingress replica.

    Args:
        limits: Limits of the replica.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        # Places whose request has not arrived, and videos in progress, by client. Neither has entries of 0.
        self._waiting: Counter[Client] = Counter()
        self._videos: Counter[Client] = Counter()
        self.closed = False

    @property
    def videos(self) -> int:
        """Return the number of videos in progress."""
        return self._videos.total()

    @contextlib.contextmanager
    def place(self, client: Client) -> Iterator["Place"]:
        """Hold a place of a client while the `with` block runs.

        Raises:
            ServiceError: The service is ending, the client has its maximum of places, or there are too many places
                whose request has not arrived.
        """
        limits = self._limits
        if self.closed:
            raise ending()
        # Behind a proxy, many clients that have not shown their keys share one address.
        max_places = limits.max_videos_per_key if client.admitted else -(-limits.max_half_open // 4)
        if self._waiting[client] + self._videos[client] >= max_places:
            raise too_many(f"this client has {max_places} requests in progress, its maximum")
        # Clients that have shown no key cannot take the places of those that have.
        waiting = sum(n for other, n in self._waiting.items() if other.admitted == client.admitted)
        if waiting >= limits.max_half_open:
            raise full(f"{limits.max_half_open} requests are arriving, the maximum")
        place = Place(self, client)
        _add(self._waiting, client, 1)
        try:
            yield place
        finally:
            _add(self._videos if place.is_video else self._waiting, client, -1)
            metrics().open_videos.set(self.videos)

    def begin_video(self, client: Client) -> None:
        """Count a place as a video. Raise ServiceError if the service is ending or has its maximum of videos."""
        if self.closed:
            raise ending()
        if self.videos >= self._limits.max_videos:
            raise full(f"{self._limits.max_videos} videos are in progress, the maximum")
        _add(self._waiting, client, -1)
        _add(self._videos, client, 1)
        metrics().open_videos.set(self.videos)


class Place:
    """Hold one place of a client, which `Places.place` has given.

    Attributes:
        is_video: Whether the place counts as a video in progress.
    """

    def __init__(self, places: Places, client: Client):
        self._places, self._client = places, client
        self.is_video = False

    def begin_video(self) -> None:
        """Count the place as a video from now on. Raise ServiceError if there are too many."""
        self._places.begin_video(self._client)
        self.is_video = True


def _add(counter: Counter[Client], client: Client, count: int) -> None:
    """Change a client's count, and forget a client whose count is 0."""
    counter[client] += count
    if not counter[client]:
        del counter[client]
