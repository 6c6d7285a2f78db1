"""Fitting a network: one loop, one schedule, an objective, and what a fit leaves behind."""
