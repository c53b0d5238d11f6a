"""One file a revision; each suits the code before it and after it."""
