"""Talks to the kernel and to programs; decides nothing."""
