"""Which videos, and which parts of them, published datasets name: read from their own files. Nothing is downloaded."""

from xactor_platform.curation.files import list_videos
from xactor_platform.curation.work import Fate, Video


def find_videos(
    folder: str, dataset: str, metadata: str | None
) -> tuple[list[Video], list[tuple[str, Fate]]]:
    """The videos to look at; and with their keys the fates of those that cannot be. ValueError: there are none."""
    if dataset == "folder":
        return list_videos(folder)
    raise ValueError(f"dataset must be folder, got {dataset!r}")
