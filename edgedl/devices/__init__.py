"""Devices that files are measured on."""
