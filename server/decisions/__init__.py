"""Answers that are probabilities of given tokens: decisions, and scores of items."""
