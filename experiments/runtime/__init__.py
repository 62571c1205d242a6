"""What runs a training: steps, devices, checkpoints, the workdir, exit statuses."""
