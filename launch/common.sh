# What the launch scripts share. Each sources it, with `self` set to how it is called.
# shellcheck shell=bash

# The comment at the head of the script.
usage() { sed -n '/^set -euo/q;/^#!/d;/^#SBATCH/d;s/^# \{0,1\}//p' "$0"; }

refuse() {
  # shellcheck disable=SC2154 # set by the script
  echo "error: $1 ($self --help says more)" >&2
  exit 2
}

# The words, quoted for a shell, in one line.
quoted() {
  local word line="" quote="'\\''"
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+=" $word"; else line+=" '${word//\'/$quote}'"; fi
  done
  printf '%s\n' "${line# }"
}

# The --run-dir among the words; the last one counts.
run_dir_of() {
  local word previous="" found=""
  for word in "$@"; do
    case $word in --run-dir=* | --run_dir=*) found=${word#*=} ;; esac
    case $previous in --run-dir | --run_dir) found=$word ;; esac
    previous=$word
  done
  printf '%s' "$found"
}

# whole_number NAME VALUE EXAMPLE: refuses all else; 010 would be 8.
whole_number() {
  [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || refuse "$1 must be a whole number, such as $3, got '$2'"
}

# Refuses a SECRETS_FILE that others may read. Not by find: its ways to ask for any of several permissions differ.
check_secrets_file() {
  [ -n "${SECRETS_FILE:-}" ] || return 0
  [ -f "$SECRETS_FILE" ] && [ -r "$SECRETS_FILE" ] ||
    refuse "SECRETS_FILE must be a file that you can read, got $SECRETS_FILE"
  [[ $(ls -dlL "$SECRETS_FILE") == ????------* ]] || refuse "others may read $SECRETS_FILE: chmod 600 $SECRETS_FILE"
}
