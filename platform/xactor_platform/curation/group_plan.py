"""Assign videos to groups, each of which becomes shards of its own."""

import json
from dataclasses import dataclass
from typing import Any

from xactor_platform.curation.curation_config import CurationConfig
from xactor_platform.storage.location import Location

PLAN = "curate.json"


@dataclass(frozen=True)
class GroupPlan:
    """Assign videos to groups, once. Later videos get groups of their own.

    So the same videos give the same shards, and more videos change no existing shard.
    """

    groups: list[list[str]]
    """Keys of the videos of each group."""

    @classmethod
    def update(cls, config: CurationConfig, syncnet: dict[str, Any], keys: list[str]) -> "GroupPlan":
        """Read the output's plan, add new videos and save it.

        Args:
            config: of the run.
            syncnet: see `syncnet_facts`.
            keys: of all videos.

        Raises:
            ValueError: the output was made with other settings.
        """
        place = Location.parse(config.output)
        place.filesystem.create_dir(place.path, recursive=True)
        settings = json.loads(json.dumps(config.decisive(syncnet)))
        groups: list[list[str]] = []
        if PLAN in place.sizes():
            with place.open(PLAN) as file:
                before = json.loads(file.read())
            if changed := sorted(k for k in settings if settings[k] != before["settings"].get(k)):
                was, now = (str(found.get(changed[0])) for found in (before["settings"], settings))
                raise ValueError(
                    f"{config.output}: was made with another {changed[0]}: {was}, now {now}; choose another output"
                )
            groups = before["groups"]
        known = {key for group in groups for key in group}
        new = sorted(set(keys) - known)
        size = config.videos_per_shard
        groups += [new[n : n + size] for n in range(0, len(new), size)]
        with place.atomic_write(PLAN) as file:
            file.write((json.dumps({"settings": settings, "groups": groups}) + "\n").encode())
        return cls(groups)
