"""Rows to a head: averaging rounds, the exact optimum, tuning, the estimator."""
