"""Configs for data of your own."""
