"""Curation: raw talking video to face clips in video shards, by pools of actors; what became of each clip is told."""
