"""Ablations: the tables and curves of the VideoMAE paper at any scale, beside the published numbers."""
