"""Named experiments: configurations, run and reported by one command."""
