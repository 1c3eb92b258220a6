"""Fuzzing of all that reads a file: ``__main__.py`` is the long run, ``test_fuzz.py`` the short one."""
