"""Nearest prototypes among very many: one index for all modalities and every query's own weights."""
