"""From the harness's results files to tables of cross-lingual transfer."""
