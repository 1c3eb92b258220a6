"""Sweeps: a YAML file of axes -> planned runs -> trained and scored prompts, on an engine.

plan.py reads the file, cost.py says what the runs take, records.py is what is known of each of them, execute.py trains
and scores the runs of a shard, and an engine (local.py, ray.py, slurm.py) decides where shards run.
"""
