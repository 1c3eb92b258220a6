"""What every part needs: errors, files, places."""
