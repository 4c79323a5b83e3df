"""Quantization: one operator table, one graph a scheme, calibrators that are plain functions."""
