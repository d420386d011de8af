"""Gaze of single viewers: tables, their times, targets for training, Aria recordings."""
