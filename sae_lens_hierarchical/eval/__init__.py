"""Evaluation of trained SAEs at every k."""
