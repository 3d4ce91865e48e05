#!/bin/bash
# One process a GPU, on as many nodes as the job has: sbatch --nodes=2 examples/slurm.sh
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# SIGTERM two minutes before the end: all stop at one step and save, and the job goes on in its place.
#SBATCH --signal=TERM@120
#SBATCH --requeue
# JAX finds the processes in SLURM's variables. Every node sees the folder.
srun googlenet-jax train --config=imagenet_googlenet_bn --workdir="${WORKDIR:?a folder that all nodes share}"
