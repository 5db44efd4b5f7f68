#!/usr/bin/env bash
# A run on Cloud TPU VMs: a queued resource from creation to deletion, and the run restarted when it is preempted.
#
#   launch/tpu_vm.sh [--dry-run] create            request the TPU, and wait until it is there
#   launch/tpu_vm.sh [--dry-run] install           copy the repository to all workers, and install it there; `run` does
#                                                  so once only: for a new commit or new secrets stop the run, and do
#                                                  it yourself
#   launch/tpu_vm.sh [--dry-run] run ARGUMENTS...  create and install where needed, train to the end, restart
#   launch/tpu_vm.sh [--dry-run] all ARGUMENTS...  run; then fetch the log, and delete everything however it ended
#   launch/tpu_vm.sh [--dry-run] tail              follow the log of worker 0
#   launch/tpu_vm.sh [--dry-run] status            state of the resource and of the run on each worker
#   launch/tpu_vm.sh [--dry-run] stop              have the run save and end
#   launch/tpu_vm.sh [--dry-run] delete            delete the TPU, and list what is left; safe to repeat
#
#   NAME=polaris PROJECT=my-project ZONE=us-west4-a SERVICE_ACCOUNT=trainer@my-project.iam.gserviceaccount.com \
#     launch/tpu_vm.sh all --config configs/math/qwen3_4b_polaris.py --run-dir gs://my-bucket/polaris
#
# ARGUMENTS are those of polyepo_jax.train, with a --run-dir that outlives the TPU and that all hosts share: gs://, or a
# path of a file system that SETUP mounts.
# --dry-run prints the commands in the order in which a run without faults gives them, and runs nothing.
#
# Variables:
#   NAME, PROJECT, ZONE                          required: of the queued resource, which is also the TPU's name
#   ACCELERATOR_TYPE=v5litepod-16
#   RUNTIME_VERSION=v2-alpha-tpuv5-lite          the image of the workers; each TPU generation has its own
#   CAPACITY=spot                                spot, on-demand or reserved
#   SERVICE_ACCOUNT, NETWORK, SUBNETWORK         as of gcloud; its defaults if not given
#   VALID_UNTIL                                  give up waiting for the TPU after this time, for instance 6h
#   REF=HEAD                                     the commit that is copied; changes that are not committed are not
#   SETUP                                        commands run by bash in the repository of every worker once it is
#                                                installed, for instance to fetch models: 'gcloud storage cp -r ...'
#   SECRETS_FILE                                 file of `export NAME=value` lines (HF_TOKEN, WANDB_API_KEY, keys of
#                                                judges), readable by you alone; copied with mode 600 and read by the
#                                                run. It is never on a command line, nor printed
#   MODULE=polyepo_jax.train                     the module to run; polyepo_jax.sft and polyepo_jax.evaluate are others
#   MAX_RESTARTS=50                              how often `run` starts the same command again, all in all
#   POLL_S=60                                    seconds between two looks at the run, or at the queue
#   SSH_FAILURES=5                               how often in a row a worker, or gcloud, may not answer before that counts
#   GRACE_S=600                                  seconds that the other workers get once one has failed
#
# On the workers the run does not depend on ssh: it goes on when this script or its connection ends, and `run` again
# finds it and waits for it; it is never started twice. ~/polyepo holds the repository, train.log and the exit code.
#
# Restarts: after exit code 75, after a process or worker was lost, and when the resource is no longer ACTIVE
# (preempted). A TPU that was preempted, that Google calls unhealthy, or of which only some workers answer, is deleted and
# requested again. Where none answers of one that Google calls healthy, the fault may be this machine's: the run is left
# alone, and waited for. What somebody else deletes, in a second terminal for one, is not requested again. Exit code of
# `run` and `all`: 0 complete; 2 bad input and 1 a failure, which are not retried; 75 restarts used up: the same command
# goes on; 130 interrupted. `run` deletes nothing at its end. `all` does, unless it was interrupted: it then says what
# still costs money.
set -euo pipefail

self=launch/tpu_vm.sh
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
say() { echo "tpu_vm: $*" >&2; }

# --- what is asked ---

dry_run=""
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=yes && shift ;;
    -*) refuse "unknown option $1: the options of the training command come after run or all" ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || refuse "expected create, install, run, all, tail, status, stop or delete"
task=$1
shift
case $task in
  run | all) [ $# -gt 0 ] || refuse "$task needs the arguments of the training command, for instance --config FILE" ;;
  create | install | tail | status | stop | delete)
    [ $# -eq 0 ] || refuse "$task takes no arguments, got $1; --dry-run comes before it"
    ;;
  *) refuse "unknown command $task: expected create, install, run, all, tail, status, stop or delete" ;;
esac

for variable in NAME PROJECT ZONE; do
  [ -n "${!variable:-}" ] || refuse "$variable is not set: NAME, PROJECT and ZONE say which TPU, for instance NAME=polaris"
done
[[ $NAME =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] || refuse "NAME must be lower-case letters, digits and dashes, got $NAME"
accelerator_type=${ACCELERATOR_TYPE:-v5litepod-16}
runtime_version=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}
capacity=${CAPACITY:-spot}
ref=${REF:-HEAD}
module=${MODULE:-polyepo_jax.train}
max_restarts=${MAX_RESTARTS:-50}
poll_s=${POLL_S:-60}
ssh_failures=${SSH_FAILURES:-5}
grace_s=${GRACE_S:-600}
whole_number MAX_RESTARTS "$max_restarts" 50
whole_number SSH_FAILURES "$ssh_failures" 5
whole_number GRACE_S "$grace_s" 600
[[ $poll_s =~ ^[0-9]+(\.[0-9]+)?$ ]] || refuse "POLL_S must be a number of seconds, such as 60, got '$poll_s'"
case $capacity in
  spot) capacity_flags=(--spot) ;;
  reserved) capacity_flags=(--reserved) ;;
  on-demand) capacity_flags=() ;;
  *) refuse "CAPACITY must be spot, on-demand or reserved, got $capacity" ;;
esac
check_secrets_file
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

case $task in
  run | all)
    run_dir=$(run_dir_of "$@")
    [[ $run_dir =~ ^([a-z0-9]+:/)?/ ]] ||
      refuse "expected --run-dir gs://BUCKET/PATH, got '$run_dir': the workers' own disks are deleted with the TPU"
    ;;
esac
case $task in
  install | run | all)
    # Before it costs anything.
    [ -n "$dry_run" ] || git -C "$repository" rev-parse --verify --quiet "$ref^{commit}" >/dev/null ||
      refuse "REF must be a commit of $repository, which must be a git repository, got '$ref'"
    ;;
esac

# --- gcloud ---

where=("--project=$PROJECT" "--zone=$ZONE")

# Runs a command, or prints it.
call() {
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}
# on WORKERS COMMAND: runs a shell command on workers, by ssh.
on() { call gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" "--worker=$1" "--command=$2"; }
# put FILE DESTINATION: copies a file to all workers.
put() { call gcloud compute tpus tpu-vm scp "$1" "$NAME:$2" "${where[@]}" --worker=all; }

list_states=(gcloud compute tpus queued-resources list "${where[@]}"
  '--format=csv[no-heading](name.basename(),state.state)')

# The state of our queued resource; ABSENT if there is none. Fails where gcloud goes on to fail, which says nothing of
# the resource.
state() {
  local listed failures=0
  until listed=$("${list_states[@]}"); do
    failures=$((failures + 1))
    if [ "$failures" -ge "$ssh_failures" ]; then
      say "error: gcloud does not list the queued resources: nothing is known of $NAME, which may cost money"
      return 1
    fi
    sleep "$poll_s"
  done
  awk -F, -v name="$NAME" '$1 == name { found = $2 } END { print found ? found : "ABSENT" }' <<<"$listed"
}

requests_left=1 # how many requests may fail; `run` allows more once the TPU was there
create() {
  local now seen="" flags=("${where[@]}" "--node-id=$NAME" "--accelerator-type=$accelerator_type"
    "--runtime-version=$runtime_version" "${capacity_flags[@]+"${capacity_flags[@]}"}")
  if [ -n "${SERVICE_ACCOUNT:-}" ]; then
    flags+=("--service-account=$SERVICE_ACCOUNT" --scopes=https://www.googleapis.com/auth/cloud-platform)
  fi
  if [ -n "${NETWORK:-}" ]; then flags+=("--network=$NETWORK"); fi
  if [ -n "${SUBNETWORK:-}" ]; then flags+=("--subnetwork=$SUBNETWORK"); fi
  if [ -n "${VALID_UNTIL:-}" ]; then flags+=("--valid-until-duration=$VALID_UNTIL"); fi
  if [ -n "$dry_run" ]; then
    quoted gcloud compute tpus queued-resources create "$NAME" "${flags[@]}"
    echo "# every $poll_s s until ACTIVE:"
    quoted "${list_states[@]}"
    return
  fi
  while true; do
    now=$(state)
    if [ "$now" != "$seen" ]; then say "$NAME: $now"; fi
    case $now in
      ACTIVE) return ;;
      ABSENT)
        case $seen in
          "" | DELETING | SUSPENDING) ;;
          *) say "error: $NAME is gone: somebody has deleted it" && return 1 ;;
        esac
        gcloud compute tpus queued-resources create "$NAME" "${flags[@]}"
        now=REQUESTED
        ;;
      FAILED | SUSPENDED)
        # Left by an earlier request, it makes room. A first request of now that fails would fail again.
        if [ "$now" = FAILED ] && [ -n "$seen" ]; then
          say "error: the request failed: quota, no capacity within VALID_UNTIL, or a setting. gcloud says:"
          gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" >&2 || true
          requests_left=$((requests_left - 1))
          if [ "$requests_left" -le 0 ]; then return 1; fi
          sleep "$poll_s"
        fi
        delete
        now=""
        ;;
    esac
    seen=$now
    if [ -n "$seen" ]; then sleep "$poll_s"; fi
  done
}

delete() {
  local left tries=0
  if [ -n "$dry_run" ]; then
    quoted gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
    quoted gcloud compute tpus queued-resources list "${where[@]}"
    quoted gcloud compute tpus tpu-vm list "${where[@]}"
    return
  fi
  left=$(state)
  while [ "$left" != ABSENT ]; do
    case $left in
      DELETING | SUSPENDING) sleep "$poll_s" ;;
      *)
        if [ "$tries" -gt "$ssh_failures" ]; then
          say "error: $NAME is still there, $left, and may cost money: run \`delete\` again, or look at the console"
          return 1
        fi
        if [ "$tries" -gt 0 ]; then sleep "$poll_s"; fi
        tries=$((tries + 1))
        # It fails where somebody or something else does it already: what counts is what is left.
        gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet || true
        ;;
    esac
    left=$(state)
  done
  say "$NAME is deleted. What is left in $ZONE, of everybody (nothing listed, nothing billed):"
  gcloud compute tpus queued-resources list "${where[@]}" >&2
  gcloud compute tpus tpu-vm list "${where[@]}" >&2
}

# --- on the workers ---

# The image of v5e has Python 3.10, and the 3.11 of its Ubuntu 22.04 is a release candidate: uv brings one. A fresh
# machine may still be updating itself. The extra gcs is for run directories at gs://.
# shellcheck disable=SC2016 # expanded by the worker
install_command='set -e; cd polyepo; mkdir -p repository; tar -xzf repository.tar.gz -C repository; cd repository; '\
'apt="sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600"; '\
'command -v make >/dev/null || { $apt update; $apt install -y make; }; python=python3; '\
'python3 -c "import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" 2>/dev/null || { '\
'uv=$HOME/.local/bin/uv; [ -x $uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh; '\
'$uv python install 3.12; python=$($uv python find --managed-python 3.12); }; '\
'make install ACCELERATOR=tpu PYTHON=$python; minor=$(.venv/bin/python -c "import sys; print(sys.version_info[1])"); '\
'.venv/bin/python -m pip install -q -c requirements/tpu-py3$minor.txt -e ".[gcs]"'

install() {
  local archive=ARCHIVE.tar.gz command=$install_command
  if [ -z "$dry_run" ]; then
    archive=$(mktemp -d)/repository.tar.gz
    if [ -n "$(git -C "$repository" status --porcelain)" ]; then
      say "warning: the working tree has changes that are not committed; what is copied is $ref"
    fi
  fi
  if [ -n "${SETUP:-}" ]; then command+="; source ../secrets.env; bash -euo pipefail -c $(quoted "$SETUP")"; fi
  # errexit is off where this function is a condition. The secrets' file is made before it is filled, so that others
  # can read it at no time.
  call git -C "$repository" archive --format=tar.gz "--output=$archive" "$ref" &&
    on all "umask 077; mkdir -p polyepo; cd polyepo; flock -n lock true || { echo 'a run is under way: stop it before \
you install' >&2; exit 1; }; rm -f installed; : > secrets.env; chmod 600 secrets.env" &&
    put "$archive" polyepo/repository.tar.gz &&
    { [ -z "${SECRETS_FILE:-}" ] || put "$SECRETS_FILE" polyepo/secrets.env; } &&
    on all "$command; touch ../installed" || return 1
  if [ -z "$dry_run" ]; then rm -r "$(dirname "$archive")"; fi
}

# Says `ready` where all workers are installed, `missing` where one is not, and nothing where one does not answer.
installed() {
  local seen
  seen=$(on all 'if [ -f polyepo/installed ]; then echo polyepo-ready; else echo polyepo-missing; fi') || return 0
  if grep -q '^polyepo-missing' <<<"$seen"; then echo missing; elif grep -q '^polyepo-ready' <<<"$seen"; then echo ready; fi
}

# Fails if the workers could not be made ready although the TPU is there. A fresh one may not answer at once.
ready() {
  local failures=0 now
  while true; do
    case $(installed) in
      ready) return 0 ;;
      missing) if install; then return 0; fi ;;
    esac
    failures=$((failures + 1))
    now=$(state)
    if [ "$now" != ACTIVE ]; then return 0; fi # watching will notice
    if [ "$failures" -ge "$ssh_failures" ]; then
      say "error: the workers could not be made ready in $failures tries, for what is said above; the TPU is left as it is"
      return 1
    fi
    sleep "$poll_s"
  done
}

# start ARGUMENTS...: starts the command on all workers where it is not running. flock holds the lock for as long as the
# command runs; it is free after that, however that ended.
start() {
  local inner words=(.venv/bin/python -m "$module")
  if [ "$module" != polyepo_jax.evaluate ]; then words+=(--stopped-exit-code 75); fi # only training goes on
  inner="cd repository; source ../secrets.env; $(quoted "${words[@]}" "$@")"
  # shellcheck disable=SC2016 # expanded by the worker
  inner+=' >> ../train.log 2>&1 & echo $! > ../pid; code=0; wait $! || code=$?; echo $code > ../exit_code'
  on all "cd polyepo || exit 1; flock -n lock true || { echo 'a run is under way: left as it is'; exit 0; }; \
rm -f exit_code pid; setsid flock -n -o lock bash -c $(quoted "$inner") > /dev/null 2>&1 < /dev/null & \
for _ in \$(seq 100); do [ -f pid ] && exit 0; sleep 0.1; done; exit 1"
}

# Prints a line for each worker: `polyepo-worker running`, `polyepo-worker CODE` once it has ended, `polyepo-worker lost`
# where it neither runs nor has ended, `polyepo-worker none` where nothing was started.
# shellcheck disable=SC2016 # expanded by the worker
look_command='cd polyepo 2>/dev/null || { echo polyepo-worker none; exit 0; }; '\
'if ! flock -n lock true; then echo polyepo-worker running; elif [ -f exit_code ]; then '\
'echo polyepo-worker $(cat exit_code); elif [ -f pid ]; then echo polyepo-worker lost; else echo polyepo-worker none; fi'
look() { on all "$look_command"; }

# shellcheck disable=SC2016 # expanded by the worker
stop_command='cd polyepo && if flock -n lock true; then echo nothing runs; else kill -s TERM $(cat pid); fi'

# --- the run ---

# Whether Google says that our TPU does not work.
unhealthy() {
  local seen
  seen=$(gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" '--format=csv[no-heading](state,health)') || return 1
  [[ ! $seen =~ ^READY,(HEALTHY|HEALTH_UNSPECIFIED)?$ ]]
}

# Waits for the end of the run on all workers. Sets `outcome` to the worst of their exit codes, where a worker that was
# killed or lost counts as 75, to `deleted`, or to `unreachable`.
watch() {
  local seen now failures=0 codes deadline="" code why
  why=$(mktemp)
  outcome=unreachable
  while true; do
    if seen=$(look 2>"$why") && grep -q '^polyepo-worker ' <<<"$seen"; then
      failures=0
      codes=$(sed -n 's/^polyepo-worker //p' <<<"$seen")
      if ! grep -qx running <<<"$codes"; then
        outcome=0
        for code in $codes; do
          case $code in
            0) ;;
            2) outcome=2 ;;
            75 | lost | none | 129 | 1[3-9]? | 2??) if [ "$outcome" = 0 ]; then outcome=75; fi ;;
            *) if [ "$outcome" != 2 ]; then outcome=1; fi ;;
          esac
        done
        break
      fi
      if grep -qvxE 'running|0' <<<"$codes"; then
        if [ -z "$deadline" ]; then deadline=$((SECONDS + grace_s)); fi
        if [ "$SECONDS" -ge "$deadline" ]; then
          say "after $grace_s s some workers have ended and others have not: those are killed"
          # shellcheck disable=SC2016 # expanded by the worker
          on all 'cd polyepo && kill -s KILL $(cat pid)' || true
          deadline=""
        fi
      fi
    else
      failures=$((failures + 1))
      now=$(state)
      case $now in
        ACTIVE) ;;
        # Not by preemption, after which it is still listed.
        ABSENT | DELETING) outcome=deleted && break ;;
        *) break ;;
      esac
      if [ "$failures" -ge "$ssh_failures" ]; then
        if grep -q '^polyepo-worker ' <<<"$seen" || unhealthy; then break; fi
        say "no worker answers, and Google calls $NAME healthy: is it this machine, its network or its ssh key? The run" \
          "is left alone; \`delete\` ends it. ssh says: $(tail -n 1 "$why")"
        failures=0
      fi
    fi
    sleep "$poll_s"
  done
  rm "$why"
}

run() {
  local attempt=0
  if [ -n "$dry_run" ]; then
    create
    install
    start "$@"
    echo "# every $poll_s s until all workers have ended:"
    look
    return
  fi
  while true; do
    create
    ready
    # A worker is not started alone while others run. What has ended before is started again: the same command resumes,
    # or has nothing to do. Where starting fails, watching finds out whether the workers still answer.
    if grep -qx 'polyepo-worker running' <<<"$(look)"; then
      say "a run is under way: left as it is, and waited for"
    elif start "$@"; then
      say "running; \`launch/tpu_vm.sh tail\` follows the log"
    fi
    watch
    case $outcome in
      0)
        say "the run is complete"
        return 0
        ;;
      1 | 2)
        say "the run failed with exit code $outcome, which another try would not change: its log says why"
        return "$outcome"
        ;;
      deleted)
        say "somebody has deleted $NAME: it is not requested again; the same command goes on"
        return 1
        ;;
    esac
    if [ "$attempt" -ge "$max_restarts" ]; then
      say "MAX_RESTARTS=$max_restarts is used up; the same command goes on"
      return 75
    fi
    attempt=$((attempt + 1))
    if [ "$outcome" = unreachable ]; then
      say "$NAME is lost: deleted and requested again (restart $attempt of at most $max_restarts)"
      requests_left=$((max_restarts - attempt + 1))
      delete
    else
      say "exit code 75: the same command again (restart $attempt of at most $max_restarts)"
      sleep "$poll_s"
    fi
  done
}

# attended ARGUMENTS...: runs; whoever interrupts that is told what goes on without it.
attended() {
  local child code=0
  (
    set -e
    run "$@"
  ) &
  child=$!
  # With what it is waiting for, which would go on by itself.
  # shellcheck disable=SC2064 # the child of now
  trap "kill $child \$(pgrep -P $child) 2>/dev/null; say '$NAME is left as it is: it goes on, and costs money until you \`delete\` it'; exit 130" INT TERM HUP
  wait "$child" || code=$?
  trap - INT TERM HUP
  return "$code"
}

all() {
  local code=0
  # Not `attended || code=$?`: that would switch errexit off inside.
  set +e
  attended "$@"
  code=$?
  set -e
  if [ -n "$dry_run" ] || [ "$(state)" = ACTIVE ]; then
    call gcloud compute tpus tpu-vm scp "$NAME:polyepo/train.log" "$NAME.log" "${where[@]}" --worker=0 || true
  fi
  delete
  return "$code"
}

case $task in
  run) attended "$@" ;;
  tail) on 0 'tail -n 100 -F polyepo/train.log' ;;
  stop) on 0 "$stop_command" ;;
  status)
    if [ -n "$dry_run" ]; then
      quoted "${list_states[@]}"
      look
    else
      now=$(state)
      echo "$NAME: $now"
      if [ "$now" = ACTIVE ]; then look; fi
    fi
    ;;
  *) "$task" "$@" ;;
esac
