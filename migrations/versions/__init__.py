"""One file for each revision; each revision works with the code before it and the code after it."""
