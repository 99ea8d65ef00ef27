"""Curate: turn raw talking videos into face clips in video shards, with pools of actors, and report on every clip."""
