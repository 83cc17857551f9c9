"""Policies in their environments: episodes, returns, and what a return proves."""
