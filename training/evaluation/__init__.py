"""Scores of bridges and the tables made of them."""
