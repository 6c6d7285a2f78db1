"""The sections of a report, one a kind of run."""
