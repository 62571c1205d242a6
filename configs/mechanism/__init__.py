"""Why normalization works: claims measured in seconds, with little training or none."""
