#!/usr/bin/env bash
# The pod on a laptop: P processes of D CPU devices each on this machine, joined by jax.distributed.
#
#   launch/local_pod.sh [--dry-run] P D [arguments of polyepo_jax.train ...]
#   launch/local_pod.sh 2 4 --config configs/polynomial/poly_epo.py
#
#   --dry-run   print what would run, one line a process, and run nothing
#
# Variables:
#   MODULE=polyepo_jax.train   the module to run; polyepo_jax.sft and polyepo_jax.evaluate are others
#   PYTHON=...                 the interpreter; .venv/bin/python of this repository if not given
#   PORT=...                   where process 0 listens; a free one is chosen if not given
#   GRACE_S=120                seconds that the other processes get to end by themselves once one has failed;
#                              then they are killed
#   RESTARTS=0                 how many times to run the same again after exit code 75 or a lost process. If above 0,
#                              training is given `--stopped-exit-code 75`, so that 0 means that the run is complete
#
# Process 0 writes to the terminal as it is. What the others say (little, unless something is wrong) goes to stderr as
# it comes, each line after its `[process i]`.
#
# SIGINT (Ctrl-C) and SIGTERM are passed on to every process: once, the run saves and ends; a second time it ends at
# once. A run that was stopped this way is not run again.
#
# The exit code is the worst of the processes', from good to bad:
#   0           done, or stopped after saving
#   75          run the same command again: a peer was lost, or --stopped-exit-code 75 and stopped. Processes that
#               were killed here, GRACE_S after one had failed, count as 75: that one has said why
#   129 - 255   killed by a signal (128 + its number): on a pod, a lost machine. Run again, as 75 is
#   the others  a failure (1): not run again
#   2           bad input: nothing was run
set -euo pipefail

self=launch/local_pod.sh
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dry_run=""
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=yes && shift ;;
    -*) refuse "unknown option $1: the options of the training command come after P and D" ;;
    *) break ;;
  esac
done
[ $# -ge 2 ] || refuse "expected P processes and D devices, got '$*', not for instance 2 4 --config FILE"
num_processes=$1 num_devices=$2
shift 2
for number in "$num_processes" "$num_devices"; do
  [[ $number =~ ^[1-9][0-9]{0,3}$ ]] || refuse "P and D must be whole numbers from 1 to 9999, got '$number'"
done

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$repository/.venv/bin/python}
module=${MODULE:-polyepo_jax.train}
grace_s=${GRACE_S:-120}
restarts=${RESTARTS:-0}
whole_number GRACE_S "$grace_s" 120
whole_number RESTARTS "$restarts" 10
[[ ${PORT:-1} =~ ^[1-9][0-9]{0,4}$ ]] || refuse "PORT must be a port; without it a free one is chosen; got '$PORT'"
command -v "$python" >/dev/null || refuse "no Python at $python: run \`make install\`, or set PYTHON"

free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# command_of PROCESS PORT ARGUMENTS...: sets `words` to what runs as this process.
# JAX_NUM_CPU_DEVICES counts more than a number of devices in XLA_FLAGS that may be set already.
command_of() {
  words=(env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$num_devices" "JAX_COORDINATOR_ADDRESS=127.0.0.1:$2"
    "JAX_NUM_PROCESSES=$num_processes" "JAX_PROCESS_ID=$1" "$python" -m "$module")
  # Only training can be stopped and go on.
  if [ "$restarts" -gt 0 ] && [ "$module" != polyepo_jax.evaluate ]; then words+=(--stopped-exit-code 75); fi
  words+=("${@:3}")
}

if [ -n "$dry_run" ]; then
  port=${PORT:-$(free_port)}
  for ((i = 0; i < num_processes; i++)); do
    command_of "$i" "$port" "$@"
    quoted "${words[@]}"
  done
  exit 0
fi

# Each process leads a process group of its own: Ctrl-C reaches this script alone, which passes it on once. What runs in
# the foreground would take the terminal, and Ctrl-C with it: nothing does while processes run.
set -m
pipes=$(mktemp -d)
pids=() codes=() readers=() groups=()
signals=0

# shellcheck disable=SC2329 # the traps call it
pass_on() {
  local pid
  signals=$((signals + 1))
  for pid in "${pids[@]+"${pids[@]}"}"; do
    if [ -n "$pid" ]; then kill -s "$1" "$pid" 2>/dev/null || true; fi
  done
}
kill_all() { # what processes have left behind as well, such as their workers
  local group
  for group in "${groups[@]+"${groups[@]}"}"; do kill -s KILL -- "-$group" 2>/dev/null || true; done
}
trap 'kill_all; rm -rf "$pipes"' EXIT
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM
trap 'pass_on TERM' HUP # the terminal is gone

prefixed() {
  local line
  trap '' INT TERM HUP
  while IFS= read -r line || [ -n "$line" ]; do printf '[process %s] %s\n' "$1" "$line" >&2; done
}

pause() {
  sleep 0.1 &
  wait $! || true # a trap interrupts it
}

# How bad an exit code is.
badness() {
  case $1 in
    0) echo 0 ;;
    75) echo 1 ;;
    2) echo 4 ;;
    *) if [ "$1" -gt 128 ]; then echo 2; else echo 3; fi ;;
  esac
}

# Runs all processes to their end, and sets `worst`.
run_once() {
  local i pid port running=$num_processes deadline="" killed=""
  port=${PORT:-$(free_port)}
  pids=() codes=() readers=() groups=()
  for ((i = 0; i < num_processes; i++)); do
    command_of "$i" "$port" "$@"
    if [ "$i" = 0 ]; then
      "${words[@]}" </dev/null &
    else
      [ -p "$pipes/$i" ] || mkfifo "$pipes/$i"
      prefixed "$i" <"$pipes/$i" &
      readers+=($!)
      "${words[@]}" </dev/null >"$pipes/$i" 2>&1 &
    fi
    pids+=($!) codes+=("") groups+=($!)
  done
  while [ "$running" -gt 0 ]; do
    for ((i = 0; i < num_processes; i++)); do
      if [ -n "${codes[i]}" ] || kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
      codes[i]=0
      wait "${pids[i]}" 2>/dev/null || codes[i]=$?
      pids[i]="" running=$((running - 1))
      if [ -n "$killed" ] && [ "${codes[i]}" = 137 ]; then codes[i]=75; fi
      if [ "${codes[i]}" != 0 ] && [ -z "$deadline" ] && [ "$running" -gt 0 ]; then
        echo "local_pod: process $i ended with ${codes[i]}; the others have $grace_s s to end" >&2
        deadline=$((SECONDS + grace_s))
      fi
    done
    if [ "$running" -gt 0 ] && [ -n "$deadline" ] && [ -z "$killed" ] && [ "$SECONDS" -ge "$deadline" ]; then
      echo "local_pod: $running of $num_processes processes have not ended: they are killed" >&2
      killed=yes
      kill_all
    fi
    if [ "$running" -gt 0 ]; then pause; fi
  done
  kill_all
  # Readers end with their pipe, unless a process was killed before it had opened it, or has left another one behind in
  # a session of its own.
  for ((i = 0; i < 20; i++)); do
    for pid in "${readers[@]+"${readers[@]}"}"; do
      if kill -0 "$pid" 2>/dev/null; then pause && continue 2; fi
    done
    break
  done
  for pid in "${readers[@]+"${readers[@]}"}"; do kill -s KILL -- "-$pid" 2>/dev/null || true; done
  worst=0
  for i in "${codes[@]}"; do
    if [ "$(badness "$i")" -gt "$(badness "$worst")" ]; then worst=$i; fi
  done
}

attempt=0
while true; do
  run_once "$@"
  case $(badness "$worst") in 1 | 2) ;; *) break ;; esac
  if [ "$signals" -gt 0 ] || [ "$attempt" -ge "$restarts" ]; then break; fi
  attempt=$((attempt + 1))
  echo "local_pod: exit code $worst; the same again ($attempt of at most $restarts times)" >&2
done
if [ "$worst" != 0 ]; then echo "local_pod: exit codes by process: ${codes[*]}; worst: $worst" >&2; fi
exit "$worst"
