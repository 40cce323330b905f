# shellcheck shell=bash
# Shared by the scripts beside this folder: a virtual environment with the pinned dependencies, and nothing done twice.
#
#   ensure_venv EXTRAS     make .venv where it is missing, install the package with EXTRAS, unless that was done before
#
# The stamp file is written last: an installation that was interrupted is simply taken up again the next time.

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [[ -n $candidate ]] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  say "No Python 3.11 or newer was found. Install one, or name it: PYTHON=/path/to/python3.11 $0"
  return 3
}

# The folder is part of it, because an editable install that was moved points at the old place.
wanted_stamp() {
  { cat pyproject.toml constraints.txt && printf '%s\n' "$1" "$PWD"; } | cksum
}

# One line that counts the seconds, and names the package that pip is busy with.
watch_install() {
  local pid=$1 log=$2 began=$SECONDS line status=0
  while kill -0 "$pid" 2>/dev/null; do
    if [[ -t 2 ]]; then
      line=$(grep -oE '^(Collecting|Downloading|Installing|Building|Obtaining)[^(;]*' "$log" 2>/dev/null | tail -n 1) || true
      printf '\r\033[K  %3d s  %.90s' "$((SECONDS - began))" "$line" >&2
    elif (((SECONDS - began) % 20 == 19)); then
      say "  $((SECONDS - began)) s  $(grep -cE '^Collecting' "$log" || true) packages resolved"
    fi
    sleep 1
  done
  wait "$pid" || status=$?
  [[ -t 2 ]] && printf '\r\033[K' >&2
  return "$status"
}

ensure_venv() {
  local extras=$1 began=$SECONDS log=.venv/install.log stamp python installer
  stamp=$(wanted_stamp "$extras")
  if [[ -x .venv/bin/python && -f .venv/stamp-$extras && $(<".venv/stamp-$extras") == "$stamp" ]]; then
    return 0
  fi
  if [[ ! -x .venv/bin/python ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python) || return
    say "Making .venv with $("$python" --version)"
    # Where a distribution leaves ensurepip out, `venv` fails; it says itself what to install.
    "$python" -m venv --clear .venv || return
  fi
  say "Installing natwork-ray[$extras] with the versions of constraints.txt (some minutes the first time; log: $log)"
  .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
    -c constraints.txt -e ".[$extras]" >"$log" 2>&1 &
  installer=$!
  trap 'kill "$installer" 2>/dev/null; exit 130' INT TERM
  if ! watch_install "$installer" "$log"; then
    trap - INT TERM
    say "The installation failed. The end of $log:"
    grep -vE '^WARNING: Location' "$log" | tail -n 15 >&2
    return 1
  fi
  trap - INT TERM
  printf '%s' "$stamp" >".venv/stamp-$extras"
  say "Installed in $((SECONDS - began)) s"
}
