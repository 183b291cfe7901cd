"""Moves the blocks: what runs in the worker process, which never forks."""
