"""The room where experiments run: train, evaluate, report, prepare, demo.

It imports normjax, never the other way.
"""
