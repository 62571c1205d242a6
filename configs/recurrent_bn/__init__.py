"""Recurrent batch normalization (Cooijmans et al., ICLR 2017, arXiv:1603.09025)."""
