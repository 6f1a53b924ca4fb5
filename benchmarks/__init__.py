"""Side-by-side measurements against the peers, one command each; see README.md."""
