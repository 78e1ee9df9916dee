#!/usr/bin/env bash
# A one-node SLURM of the tests' own: no systemd, no cgroups, no database, two null devices counted as GPUs. Needs root.
# Installs Debian's packages where they are missing; a second call does nothing. tests/slurm_down.sh stops it.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "no SLURM: setting it up needs root"; exit 3; }
PATH=$PATH:/usr/sbin
if ! type slurmctld slurmd munged sbatch >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    packages="slurmctld slurmd slurm-client munge"
    { timeout 120 apt-get update && timeout 300 apt-get install -y --no-install-recommends $packages; } >/dev/null 2>&1 ||
        { echo "no SLURM: the packages $packages cannot be installed here"; exit 3; }
fi

place=/var/lib/depthcut-slurm
host=$(hostname -s)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
export SLURM_CONF=$place/slurm.conf
alive() { [ -f "$1" ] && ps -o stat= -p "$(cat "$1")" | grep -qv Z; }
idle() { sinfo -h -o %T 2>/dev/null | grep -qE '^(idle|mixed|allocated)$'; }

# SLURM takes the name in a device's path for its number, so the two are gpu0 and gpu1.
install -d $place/state $place/spool
for i in 0 1; do [ -e $place/gpu$i ] || mknod $place/gpu$i c 1 3; done
install -d -o munge -g munge /run/munge
munge -n >/dev/null 2>&1 || runuser -u munge -- /usr/sbin/munged --force

# The ports are not SLURM's own, and SLURM_CONF is asked for, so that a real cluster's tools go on undisturbed.
# cred_expire: a requeued job waits that long before it starts again (by default 120 s).
# config_overrides: more CPUs than there are, because most of what these jobs do is to wait for each other.
if ! alive $place/slurmctld.pid; then
    cat > $SLURM_CONF <<CONF
ClusterName=depthcut-tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
SlurmdUser=root
AuthInfo=cred_expire=5
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=2,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=300
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=$memory Gres=gpu:2
PartitionName=tests Nodes=$host Default=YES MaxTime=1:00:00 DefMemPerCPU=512
CONF
    echo "NodeName=$host Name=gpu Count=2 File=$place/gpu[0-1]" > $place/gres.conf
    slurmctld
fi
alive $place/slurmd.pid || slurmd
for _ in $(seq 150); do
    idle && exit 0
    sleep 0.1
done
echo "no SLURM: it did not start within 15 s"
tail -n 20 $place/*.log
exit 3
