"""Programs to read, and to take pieces from."""
