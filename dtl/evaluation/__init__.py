"""Scores of a head, and its predictions for new images.

Others use `scoring.evaluate`, `prediction.predict` and the values in `values`.
"""
