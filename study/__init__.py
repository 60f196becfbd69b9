"""A reproduction study of rTop-k: small programs, many seeds, verdicts from logs (docs/reproduction.md)."""
