"""Pallas kernels for accelerators, chosen by `impl="kernel"`; each has a plain twin.

None of them was ever run on a device: they are tested in interpret mode and lowered, the norms for
TPU and GPU, the BN-LSTM for TPU, and so they are off by default. On a CPU they are interpreted,
which is for tests: it is many times slower than `impl="xla"`. What a kernel does not serve (a mask,
float64, complex values, shapes that do not fit its blocks) goes the plain way: `impl="kernel"`
never changes what a norm means. Over several devices they want `shard_map` or `pmap`: under `jit`
no compiler cuts a kernel.

=============  ===============================================================================
`_rows`        layer and RMS norm: a set is a row, read once forward and once backward
`_columns`     batch, group, instance norm: several sums over each column's rows in one pass
`_bn_lstm`     the recurrence of the BN-LSTM, weights and state on the chip; TPU
`_measure`     mean and centred values of a block, as exact as the core's
`_call`        blocks, backends, interpret mode
=============  ===============================================================================

Forward mode, `vmap` and second derivatives come from the twin: `normjax._internal._paired`.
"""
