"""Benchmarks: dmcopy and its peers, side by side in one run, on equal devices.

``python -m benchmarks copy`` boots the lab's guest, runs `benchmarks.stage` in it, and makes a
table, a JSON file with every sample and a plot of what came out.  ``python -m benchmarks
forecast`` replays recorded copies and says how wrong the forecast is.  Not part of the
distribution.
"""
