"""Corpora: talking clips made with known ground truth, or read off real video, as shards for stage 2."""
