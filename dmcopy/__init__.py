"""dmcopy copies a live block device, as it was at one instant, onto a destination."""

__version__ = "0.1.0"
