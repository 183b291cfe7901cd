"""One copy as a job: what was asked, how far it is, who does it."""
