"""Build pipelines that map files through pools of Ray actors: stages, messages, pools, the tally and the bill."""
