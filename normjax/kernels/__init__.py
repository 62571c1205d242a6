"""Pallas kernels for accelerators, selected by `impl="kernel"`; each has a plain JAX twin.

None of them has been run on an accelerator yet, so they are off by default. They are tested in
interpret mode and compiled ahead of time, the norms for TPU and GPU, the BN-LSTM for TPU. A program
gets its kernels when it is lowered, so one that is exported on a CPU has them on a TPU; a CPU, and
any platform without a kernel, runs the plain twin. Tests have kernels interpreted on a CPU by
`_pallas.interpreted()`. A norm falls back to XLA where no kernel can be used (a mask, float64,
complex values, a symbolic size, shapes that do not fit the blocks), so `impl="kernel"` never
changes what a norm computes. With several devices use `shard_map` or `pmap`: `jit` does not
partition a kernel.

`import normjax.kernels` imports no kernel and no backend; Triton, which JAX is to remove, is looked
for when a kernel for a GPU is made, and without it a GPU runs the twin.

================  ============================================================================
`_layer_norm`     layer and RMS norm: each set is a row, read once forward and once backward
`_batch_norm`     batch, group and instance norm: all sums over a column's rows in one pass
`_bn_lstm`        the recurrence of the BN-LSTM, with weights and state in on-chip memory; TPU
`_block_moments`  mean and centred values of a block, as exact as `normjax.moments`
`_pallas`         platforms and their backends, blocks, interpret mode
================  ============================================================================

Forward mode, `vmap` and second derivatives use the twin: see `normjax._internal._paired`.
"""
