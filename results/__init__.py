"""Measured results, packed, and the scripts that make the tables from them."""
