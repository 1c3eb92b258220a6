"""Faults: processes that are killed, disks that are full, memory that runs out. ``__main__.py`` is the long run."""
