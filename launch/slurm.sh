#!/bin/bash
# Train on GPUs under Slurm, one process per node, and continue after a preemption or a time limit.
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh \
#       --config=configs/recurrent_bn/pmnist.py:bn_lstm --workdir=/shared/runs/pmnist/bn_lstm
#
# Run it from the root of the repository, with the environment made by `make .venv/.installed` and
# JAX's CUDA wheels in it (pip install -e '.[cuda13]' --group experiments). The workdir is on a file system
# that every node can reach. Processes find each other by Slurm's own variables.
#
# To have XLA record the loops of recurrent layers as CUDA graphs; on an H100 that gains 6 % at most:
#
#   export XLA_FLAGS="--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL --xla_gpu_graph_min_graph_size=1"
#
#SBATCH --job-name=normjax
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
# Two minutes before the limit the run gets a TERM. It saves and ends with status 143.
#SBATCH --signal=TERM@120

set -u
srun --kill-on-bad-exit=1 .venv/bin/python -m experiments.train "$@" &
wait $!
status=$?
# 143: stopped by TERM, all is saved. 3: a node or the disk failed. Either way the same job continues.
if [ "$status" = 143 ] || [ "$status" = 3 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
