"""Measures of trained SAEs at every k."""
