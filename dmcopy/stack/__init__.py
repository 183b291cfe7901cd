"""Changes the device stack: splice a snapshot under a live device, and take it out again."""
