"""The platform on Ray: shards, the plan, streaming, training, corpora."""
