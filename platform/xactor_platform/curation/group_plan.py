"""Assign videos to groups. The clips of a group are written into shards that hold no clips of other groups."""

import json
from dataclasses import dataclass
from typing import Any

from xactor_platform.curation.curation_config import CurationConfig
from xactor_platform.storage.location import Location

# File of the plan, in the output folder.
PLAN = "curate.json"


@dataclass(frozen=True)
class GroupPlan:
    """Assign each video to a group once. Videos that a later run adds get new groups.

    Therefore the same videos give the same shards, and additional videos change no existing shard.
    """

    groups: list[list[str]]
    """Keys of the videos of each group."""

    @property
    def order(self) -> dict[str, int]:
        """Return the place of each video in the plan, by its key."""
        return {key: n for n, key in enumerate(key for group in self.groups for key in group)}

    @classmethod
    def update(cls, config: CurationConfig, facts: dict[str, Any], keys: list[str]) -> "GroupPlan":
        """Read the plan from the output folder, add groups of new videos, save the plan and return it.

        Args:
            config: configuration of the run.
            facts: properties of the models and the videos on which the shards depend, by name.
            keys: keys of all videos.

        Raises:
            ValueError: the output was made with other settings.
        """
        place = Location.parse(config.output)
        place.filesystem.create_dir(place.path, recursive=True)
        # JSON turns tuples into lists. Convert the settings in the same way, to compare them with the saved ones.
        settings = json.loads(json.dumps(config.decisive(facts)))
        groups: list[list[str]] = []
        if PLAN in place.sizes():
            with place.open(PLAN) as file:
                before = json.loads(file.read())
            saved = before["settings"]
            if changed := sorted(name for name in settings if settings[name] != saved.get(name)):
                name = changed[0]
                raise ValueError(
                    f"{config.output}: was made with another {name}: {saved.get(name)}, now {settings[name]}; "
                    f"choose another output"
                )
            groups = before["groups"]
        known = {key for group in groups for key in group}
        new = sorted(set(keys) - known)
        size = config.videos_per_shard
        groups += [new[n : n + size] for n in range(0, len(new), size)]
        with place.atomic_write(PLAN) as file:
            file.write((json.dumps({"settings": settings, "groups": groups}) + "\n").encode())
        return cls(groups)
