"""The embedded stack of a laptop: real servers as child processes, and nothing of them left behind."""
