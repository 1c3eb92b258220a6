"""Results files of the harness -> languages, distances, statistics -> tables, figures and the leaderboard's page."""
