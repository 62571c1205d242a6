"""Norms in feed-forward networks: MLPs and LeNet on MNIST and Fashion-MNIST.

senliuy, keras_layerNorm_mlp_lstm (GitHub), mnist.ipynb. Ioffe, Szegedy, "Batch Normalization",
2015. Ba, Kiros, Hinton, "Layer Normalization", 2016. Wu, He, "Group Normalization", 2018. Ioffe,
"Batch Renormalization", 2017. Hoffer et al., "Train longer, generalize better", 2017. Salimans,
Kingma, "Weight Normalization", 2016. Luo et al., "Cosine Normalization", 2017. Li et al.,
"Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift", 2019,
arXiv:1801.05134. Huang et al., "Decorrelated Batch Normalization", 2018, and "Iterative
Normalization", 2019. Wu, Johnson, "Rethinking Batch in BatchNorm", 2021. Ulyanov, Vedaldi,
Lempitsky, "Instance Normalization", 2016.
"""
