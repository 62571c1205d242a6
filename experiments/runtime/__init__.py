"""Runs a training: steps, devices, checkpoints, the workdir, exit statuses."""
