"""What the compilers of a TPU and a GPU make of normjax, on a machine that has neither.

    python -m benchmarks.compilers [tpu|h100] [--parts=norms] [--only=layer] [--keep]

`make accelerators` installs the compilers. Nothing runs: a program is compiled ahead of time and
read. `--keep` writes `results/compilers/TARGET.json`, from which `python -m benchmarks.compilers
table` brings the tables of `benchmarks/README.md` up to date.

============  ==========================================================================
`targets`     the machines that are compiled for, and the environments of their compilers
`hlo`         reads a compiled program: kernels, bytes, loops, collectives
`norms`       every norm, by XLA and by a kernel, beside Flax
`resources`   what kernels take of a chip; `ptx` asks ptxas
`recurrent`   recurrent layers: kernels a time step
`slices`      collectives of a step on a slice of many chips
`steps`       the training steps of configs, on one chip and on a slice
`table`       the tables of `benchmarks/README.md`
============  ==========================================================================
"""
