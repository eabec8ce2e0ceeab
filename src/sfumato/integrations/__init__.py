"""CEM inside other people's trainers. Each module needs its own package and says which extra brings it."""
