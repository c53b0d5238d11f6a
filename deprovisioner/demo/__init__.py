"""The main job for a person to watch: `story` plays it, `witnesses` reads what the servers recorded."""
