"""Prompt batches in, updates out."""
