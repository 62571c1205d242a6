"""Norms between linear recurrent layers, which are computed for all steps at once.

Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences", ICML 2023,
arXiv:2303.06349. Smith, Warrington, Linderman, "Simplified State Space Layers for Sequence
Modeling", ICLR 2023, arXiv:2208.04933.
"""
