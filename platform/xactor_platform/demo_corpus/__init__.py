"""Make a corpus of talking clips with known ground truth, as shards for both stages."""
