#!/bin/bash
# Agents as jobs of a Slurm cluster, one for each task of the array, each with an identity and rows of its own:
#   mkdir -m 700 ~/fedagent && cp token ~/fedagent/          # of fedcoord agents token --uses 4
#   sbatch --export=ALL,COORDINATOR=https://coordinator.example,RUNS=intents,ROWS=/project/rows,FEDCYBGD=$HOME/fedcybgd/.venv slurm-agent.sh
# Rows of the first are in $ROWS/1.csv. Lines marked with (*) are those that you may have to change. The nodes must reach the coordinator.
#SBATCH --job-name=fedagent
#SBATCH --array=1-4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --output=fedagent-%a.log
#SBATCH --open-mode=append
# (*) The three lines above the log are what a job may take. Two minutes before its time is over it gives back what it holds and ends;
# sent again with the same array it goes on as the same agents. A node that fails is no harm: others get the visit.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail
umask 077

: "${COORDINATOR:?its URL}" "${RUNS:?names of runs that may use the rows}" "${ROWS:?directory of the rows}" "${FEDCYBGD:?its virtual environment}"
# (*) On a file system that all nodes share: the same agent must not be two. There is a lock, if that file system has locks.
place="${FEDAGENTS:-$HOME/fedagent}"
export FEDAGENT_HOME="$place/$SLURM_ARRAY_TASK_ID"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

if [ ! -e "$FEDAGENT_HOME/credentials.json" ]; then
    "$FEDCYBGD/bin/fedagent" enroll "$COORDINATOR" --token-file "$place/token" --name "slurm-$SLURM_ARRAY_TASK_ID" \
        --data "$ROWS/$SLURM_ARRAY_TASK_ID.csv" --runs "$RUNS"
fi
# In the place of this shell: the signal above is sent to it alone.
exec "$FEDCYBGD/bin/fedagent" run
