#!/usr/bin/env bash
# A whole SLURM on this machine's loopback, for tests and for trying things out: munged, slurmctld and slurmd (Debian's slurm-wlm and
# munge), everything they write in one folder. Needs root.
#
#     one_node.sh start FOLDER [CPUS]    starts it and waits until the node is idle; then: export SLURM_CONF=FOLDER/slurm.conf
#     one_node.sh stop FOLDER            cancels every job and ends the three daemons
set -euo pipefail

fail() {
    echo "one_node.sh: $1" >&2
    exit 1
}

free_ports() {
    python3 - <<'PYTHON'
import socket

sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in sockets))
PYTHON
}

write_configuration() {
    local cpus=$1 controller_port daemon_port
    read -r controller_port daemon_port < <(free_ports)
    # config_overrides: the node has the processors written here, whatever the machine has. RequeueExit: our exit code for "preempted".
    cat > "$folder/slurm.conf" <<CONFIGURATION
ClusterName=one-node
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$daemon_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
RequeueExit=75
KillWait=20
ReturnToService=2
MinJobAge=300
InactiveLimit=0
UnkillableStepTimeout=120
NodeName=localhost NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=15
PartitionName=urgent Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=10
CONFIGURATION
}

start() {
    local cpus=${1:-8} program
    for program in munged slurmctld slurmd sinfo srun sbatch; do
        command -v "$program" > /dev/null || fail "$program is not installed (apt-get install slurm-wlm munge)"
    done
    [ "$(id -u)" = 0 ] || fail "needs root"
    mkdir -p "$folder/state" "$folder/spool"
    folder=$(cd "$folder" && pwd) # the daemons are told absolute paths: slurmd cannot find a relative configuration
    write_configuration "$cpus"
    head -c 1024 /dev/urandom > "$folder/munge.key"
    chmod 700 "$folder"
    chmod 600 "$folder/munge.key"
    munged --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" --pid-file "$folder/munged.pid" \
        --log-file "$folder/munged.log" --seed-file "$folder/munged.seed" 2> "$folder/munged.err" || fail "munged: $(tail -n 1 "$folder/munged.err")"
    slurmctld -f "$folder/slurm.conf" -i || fail "slurmctld did not start: $(tail -n 1 "$folder/slurmctld.log")"
    slurmd -f "$folder/slurm.conf" -N localhost || fail "slurmd did not start: $(tail -n 1 "$folder/slurmd.log")"
    export SLURM_CONF=$folder/slurm.conf
    local attempt
    for attempt in $(seq 150); do
        if [ "$(sinfo --noheader --format %t 2> "$folder/sinfo.err" | sort -u)" = idle ]; then
            return
        fi
        sleep 0.2
    done
    fail "the node is not idle after 30 s: $(tail -n 1 "$folder/sinfo.err") $(tail -n 1 "$folder/slurmd.log") $(tail -n 1 "$folder/slurmctld.log")"
}

stop() {
    local program
    [ -f "$folder/slurm.conf" ] || fail "$folder holds no slurm.conf"
    SLURM_CONF=$folder/slurm.conf scancel --quiet --user root 2> /dev/null || true
    for program in slurmd slurmctld munged; do
        [ -f "$folder/$program.pid" ] && kill "$(cat "$folder/$program.pid")" 2> /dev/null || true
    done
}

[ $# -ge 2 ] || fail "start FOLDER [CPUS], or stop FOLDER"
folder=$2
case $1 in
    start) start "${@:3}" ;;
    stop) stop ;;
    *) fail "unknown command $1: start or stop" ;;
esac
