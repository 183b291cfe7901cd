"""The agent: jobs that are started, watched and steered from outside a terminal.

It supervises and never copies: every job is a process of its own, with the command line's own
words, that outlives the agent (DESIGN.md section 9).
"""
