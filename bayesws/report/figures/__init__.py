"""Figures, with one palette: of reports, and of what the commands write beside their numbers."""
