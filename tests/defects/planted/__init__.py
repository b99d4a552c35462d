"""Planted defects: what the conformance suite must catch, each over any base backend."""
