"""Norms in feed-forward networks: MLPs and LeNet on MNIST and Fashion-MNIST."""
