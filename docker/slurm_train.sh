#!/bin/bash
# One training, on one node, that lives through time limits and preemption:
#   sbatch docker/slurm_train.sh STORE RUN [OPTION...]
# the same with several losses, a task each, in RUN/bce and so on:
#   sbatch --array=0-2 --export=ALL,LOSSES="bce focal cefl" docker/slurm_train.sh STORE RUN [OPTION...]
# out of an image:
#   apptainer build luna-cls.sif docker-daemon://luna-cls:gpu
#   sbatch --export=ALL,LUNA_CLS="apptainer exec --nv luna-cls.sif luna-cls" docker/slurm_train.sh STORE RUN
#
#SBATCH --job-name=luna-cls
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --gpus=1
#SBATCH --time=12:00:00
#SBATCH --output=luna-cls-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail

store=$1 run=$2
shift 2
if [ -n "${LOSSES:-}" ]; then
    read -ra losses <<< "$LOSSES"
    loss=${losses[$SLURM_ARRAY_TASK_ID]}
    run=$run/$loss
    set -- --loss "$loss" "$@"
fi
read -ra luna_cls <<< "${LUNA_CLS:-luna-cls}"

# SLURM sends TERM to what srun has started, a minute before the end: it saves, and exits with 0 either way.
status=0
srun "${luna_cls[@]}" train "$store" "$run" --resume "$@" || status=$?
if [ "$status" = 0 ] && [ ! -e "$run/metrics.json" ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
fi
exit "$status"
