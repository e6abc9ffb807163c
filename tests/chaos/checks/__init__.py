"""The checks, by what they look at. Each takes the index and yields what it can prove to be wrong."""
