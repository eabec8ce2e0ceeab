"""Experiments as data: jobs, the pool that runs them, the demo and its longer study."""
