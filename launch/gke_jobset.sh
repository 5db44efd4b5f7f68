#!/usr/bin/env bash
# A run on a TPU node pool of GKE: fills in launch/gke_jobset.yaml and hands it to kubectl.
#
#   launch/gke_jobset.sh [--dry-run] apply ARGUMENTS...   start the run; ARGUMENTS are those of polyepo_jax.train
#   launch/gke_jobset.sh [--dry-run] status               the JobSet and its pods
#   launch/gke_jobset.sh [--dry-run] tail                 follow the log of process 0
#   launch/gke_jobset.sh [--dry-run] delete               stop the run (it saves) and remove it; safe to repeat
#
#   NAME=polaris IMAGE=us-docker.pkg.dev/my-project/polyepo/polyepo:1 \
#     launch/gke_jobset.sh apply --config configs/math/qwen3_4b_polaris.py --run-dir gs://my-bucket/polaris
#
#   --dry-run   print the manifest and the command that it would be given to, and run nothing
#
# ARGUMENTS need a --run-dir that outlives the pods and that all of them share: gs://, or the path of a volume that you
# add to the manifest. The same `apply` after a `delete` resumes. `delete` frees the hosts and deletes no node pool:
# docs/pods.md has the way back to zero cost. Restarts are the JobSet's, as said in launch/gke_jobset.yaml.
#
# Variables:
#   NAME                                  required: of the JobSet
#   IMAGE                                 required by apply: an image in which `python -m polyepo_jax.train` runs in the
#                                         folder that holds configs/ (docs/pods.md has a Dockerfile)
#   NAMESPACE=default
#   SERVICE_ACCOUNT=default               the Kubernetes service account that may write to the bucket
#   SECRET=polyepo                        the Secret whose entries are the pods' environment: HF_TOKEN, WANDB_API_KEY,
#                                         keys of judges; it may be absent
#   TPU_ACCELERATOR=tpu-v5-lite-podslice  of the node pool, as is
#   TPU_TOPOLOGY=4x4
#   NUM_HOSTS=4
#   CHIPS_PER_HOST=4
#   MODULE=polyepo_jax.train              the module to run; polyepo_jax.sft and polyepo_jax.evaluate are others
#   MAX_RESTARTS=50                       how often the JobSet starts all pods again, all in all
#   GRACE_S=300                           seconds that a pod gets to save when it is told to end
set -euo pipefail

self=launch/gke_jobset.sh
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dry_run=""
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=yes && shift ;;
    -*) refuse "unknown option $1: the options of the training command come after apply" ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || refuse "expected apply, status, tail or delete"
task=$1
shift
case $task in
  apply) [ $# -gt 0 ] || refuse "apply needs the arguments of the training command, for instance --config FILE" ;;
  status | tail | delete) [ $# -eq 0 ] || refuse "$task takes no arguments, got $1; --dry-run comes before it" ;;
  *) refuse "unknown command $task: expected apply, status, tail or delete" ;;
esac

: "${NAMESPACE:=default}" "${SERVICE_ACCOUNT:=default}" "${SECRET:=polyepo}" "${TPU_ACCELERATOR:=tpu-v5-lite-podslice}"
: "${TPU_TOPOLOGY:=4x4}" "${NUM_HOSTS:=4}" "${CHIPS_PER_HOST:=4}" "${MODULE:=polyepo_jax.train}" "${MAX_RESTARTS:=50}"
: "${GRACE_S:=300}"

# must_be NAME PATTERN WHAT: what a variable may hold. Nothing that YAML could take for something else.
must_be() { [[ ${!1:-} =~ ^($2)$ ]] || refuse "$1 must be $3, got '${!1:-}'"; }
dns_label='[a-z0-9]([-a-z0-9]*[a-z0-9])?'
# Pods are called NAME-slice-0-INDEX-xxxxx, and jobs and hosts may have 63 characters.
must_be NAME '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' "lower-case letters, digits and dashes, at most 40"
must_be NAMESPACE "$dns_label" "a Kubernetes name"
must_be SERVICE_ACCOUNT "$dns_label" "a Kubernetes service account"
must_be SECRET "$dns_label" "the name of a Secret"
must_be TPU_ACCELERATOR "$dns_label" "the accelerator of the node pool"
must_be TPU_TOPOLOGY '[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}' "a topology such as 4x4"
must_be MODULE '[A-Za-z_][A-Za-z0-9_.]*' "a Python module"
for variable in NUM_HOSTS CHIPS_PER_HOST GRACE_S MAX_RESTARTS; do
  must_be "$variable" '0|[1-9][0-9]{0,8}' "a whole number" # 010 would be 8
done
chips=$((${TPU_TOPOLOGY//x/ * }))
[ "$chips" -eq $((NUM_HOSTS * CHIPS_PER_HOST)) ] ||
  refuse "TPU_TOPOLOGY $TPU_TOPOLOGY has $chips chips, and NUM_HOSTS x CHIPS_PER_HOST is $NUM_HOSTS x $CHIPS_PER_HOST"
if [ "$task" = apply ]; then
  must_be IMAGE '[A-Za-z0-9][A-Za-z0-9./:@_-]*' "a container image"
  run_dir=$(run_dir_of "$@")
  [[ $run_dir =~ ^([a-z0-9]+:/)?/ ]] ||
    refuse "expected --run-dir gs://BUCKET/PATH, got '$run_dir': what is on the pods' own disks is gone with them"
  if [ "$MODULE" != polyepo_jax.evaluate ]; then set -- --stopped-exit-code 75 "$@"; fi # only training goes on
fi

# yaml_list WORDS...: a list in one line, as JSON. Kubernetes replaces $(NAME) in arguments, and takes $$ for one $.
yaml_list() {
  # shellcheck disable=SC1003 # a backslash in single quotes is one
  local word list="" backslash='\\' quote='\"' newline='\n' tab='\t' dollar='$$'
  for word in "$@"; do
    word=${word//\\/"$backslash"}
    word=${word//\"/"$quote"}
    word=${word//$'\n'/"$newline"}
    word=${word//$'\t'/"$tab"}
    word=${word//\$/"$dollar"}
    [[ ! $word =~ [[:cntrl:]] ]] || refuse "an argument holds a control character"
    list+=", \"$word\""
  done
  printf '[%s]' "${list#, }"
}

# The template with its ${VARIABLES} replaced, each once: what they hold is not looked at again.
manifest() {
  local text rest="" name
  text=$(<"$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")
  while [[ $text =~ \$\{([A-Z_]+)\} ]]; do
    name=${BASH_REMATCH[1]}
    [ -n "${!name:-}" ] || refuse "$name is not set, and launch/gke_jobset.yaml needs it"
    rest+=${text%%"\${$name}"*}${!name}
    text=${text#*"\${$name}"}
  done
  printf '%s\n' "$rest$text"
}

call() {
  if [ -n "$dry_run" ]; then echo "$*"; else "$@"; fi
}
in_namespace=("--namespace=$NAMESPACE")
# shellcheck disable=SC2153 # checked above
ours="jobset.sigs.k8s.io/jobset-name=$NAME"

case $task in
  apply)
    # shellcheck disable=SC2034 # the template names it
    ARGUMENTS=$(yaml_list "$@")
    filled=$(manifest)
    if [ -n "$dry_run" ]; then
      printf '%s\n' "$filled"
      echo "# kubectl apply --filename=-"
    else
      # What runs already cannot be changed, and is not: the same manifest again changes nothing.
      kubectl apply --filename=- <<<"$filled"
    fi
    ;;
  status)
    call kubectl get jobset "$NAME" "${in_namespace[@]}"
    call kubectl get pods "${in_namespace[@]}" "--selector=$ours" --output=wide
    ;;
  tail)
    call kubectl logs "${in_namespace[@]}" "--selector=$ours,batch.kubernetes.io/job-completion-index=0" --tail=100 --follow
    ;;
  delete)
    call kubectl delete jobset "$NAME" "${in_namespace[@]}" --ignore-not-found --cascade=foreground
    call kubectl get pods "${in_namespace[@]}" "--selector=$ours"
    ;;
esac
