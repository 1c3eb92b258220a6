"""Stored log-likelihoods: a dependency that shifts them is noticed. ``__main__.py`` writes them anew."""
