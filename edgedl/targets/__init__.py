"""Targets, one file each: how a model becomes files for one runtime, and how those are opened."""
