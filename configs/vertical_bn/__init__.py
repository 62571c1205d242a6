"""Batch norm on the input term of stacked recurrent layers (Laurent et al. 2016; Deep Speech 2)."""
