"""Writing to disk: folders that appear whole or not at all, and locks."""
