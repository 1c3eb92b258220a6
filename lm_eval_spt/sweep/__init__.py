"""Sweeps: a YAML file of axes -> planned runs -> trained and scored prompts, on an engine.

plan.py reads the file, cost.py estimates what the runs cost, records.py keeps the state of each run, execute.py trains
and scores the runs of a shard, and an engine (local.py, ray.py, slurm.py) decides where shards run.
"""
