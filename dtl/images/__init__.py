"""Photographs: which files, which class, which split; tars; public data sets."""
