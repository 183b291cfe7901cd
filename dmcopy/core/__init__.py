"""The pure heart: values in, values out; no operating system, no device, no clock."""
