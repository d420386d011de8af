"""Leaderboards: published numbers beside measured ones, never mixed with them.

`avsal leaderboard` prints tables of results files, `avsal reproduce` runs a paper's tables first.
"""
