"""What every other folder uses: errors, files, paths."""
