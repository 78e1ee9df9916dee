#!/usr/bin/env bash
# Stops what tests/slurm_up.sh started, jobs and daemons, and removes their files. munged and the packages stay.
place=/var/lib/depthcut-slurm
export SLURM_CONF=$place/slurm.conf
[ -f $SLURM_CONF ] || exit 0
timeout 10 scancel --me --signal=KILL --full 2>/dev/null
timeout 10 scancel --me 2>/dev/null
for _ in $(seq 50); do
    [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
    sleep 0.1
done
for daemon in slurmd slurmctld; do
    [ -f $place/$daemon.pid ] && kill "$(cat $place/$daemon.pid)" 2>/dev/null
done
for _ in $(seq 50); do
    [ -e $place/slurmd.pid ] || [ -e $place/slurmctld.pid ] || break
    sleep 0.1
done
rm -rf $place
