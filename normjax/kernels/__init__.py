"""Pallas kernels for accelerators, selected by `impl="kernel"`; each has a plain JAX twin.

They are off by default. On an H100 they agree with float64; layer and RMS norm's read x once in a
forward pass, and in training none is faster than XLA (`benchmarks/README.md`). No TPU has run them:
for that they are tested in interpret mode and compiled ahead of time.

A program gets its kernels when it is lowered, so one that is exported on a CPU has them on a TPU; a
CPU, and any platform without a kernel, runs the plain twin. Tests have kernels interpreted on a CPU
by `_pallas.interpreted()`. A norm falls back to XLA where no kernel can be used: with a mask, in
float64, for complex values, a symbolic size and shapes that do not fit the blocks. On a GPU those
are all that are not cut into whole blocks of powers of two, such as 768 features. So
`impl="kernel"` never changes what a norm computes. With several devices use `shard_map` or `pmap`:
`jit` does not partition a kernel.

`_registry` says which kernel serves which norm on which platform. `import normjax.kernels` imports
no kernel and no backend; Triton, which JAX is to remove, is looked for when a kernel for a GPU is
made, and without it a GPU runs the twin.

================  ============================================================================
`_registry`       the table of kernels, and what imports one
`_layer_norm`     layer and RMS norm: each set is a row, read once forward and once backward
`_batch_norm`     batch, group and instance norm: all sums over a column's rows in one pass
`_bn_lstm`        the recurrence of the BN-LSTM over all steps, and its plain twin
`_bn_lstm_step`   one step of it and its gradient
`_bn_lstm_tpu`    its kernel for a TPU: weights and state stay in on-chip memory
`_bn_lstm_gpu`    its kernel for a GPU: one block a model, as many as `jax.vmap` has
`_block_moments`  mean and centred values of a block, as exact as `normjax.moments`
`_pallas`         calls of kernels: what fits, blocks, interpret mode
================  ============================================================================

Forward mode and second derivatives use the twin: see `normjax._internal._paired`. `vmap` adds an
axis to a kernel's grid.

The layer and RMS norm of the package tokamax are no backend here. Version 0.0.17 was read, and run
with JAX 0.12 on a CPU, where it uses XLA by the formula of its Triton kernel (2026-11-27):

- It subtracts a mean that is rounded once. With rows of mean 1e4 and deviation 1, outputs are off
  by 1e-3 and gradients by 2e-4, both relative to the deviation; tests of the kernels here allow
  2e-6.
- `tokamax.layer_norm` has no forward mode, and keeps to itself the statistics that a backward pass
  with other derivatives would need; the functions that return them are private.
- Its Triton kernel is chosen while a program is traced, by the device of the process: from a CPU
  nothing can be exported for a GPU with it. For a TPU it has no kernel.
- It takes one axis. It brings Flax, which the core of normjax does without, and a profiler.
"""
