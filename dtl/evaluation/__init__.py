"""Scores of a head, and its predictions for new images."""
