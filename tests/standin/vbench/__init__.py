"""Stands in for the package `vbench`: its console script's two commands, its files, and none of its models."""
