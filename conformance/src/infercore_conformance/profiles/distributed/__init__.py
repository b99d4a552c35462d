"""Ranks that share a model: how many there are changes no answer, and one that fails is told."""
