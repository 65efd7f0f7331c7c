#!/usr/bin/env bash
# Records and checks histories, one seed after another, until the time is over: cache-core/tests/history.rs with longer
# histories. Stops at the first that breaks a guarantee, and leaves it in target/soak.
#
#   scripts/soak.sh 10m          from a seed of chance
#   scripts/soak.sh 2h 4711      from this seed
#
# CACHE_OPS sets the length of a history: calls of each reader, default 12000 (about two minutes).
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    echo "usage: scripts/soak.sh DURATION [SEED]    DURATION: 90s, 10m, 2h" >&2
    exit 2
}
[[ $# -ge 1 && $# -le 2 && $1 =~ ^[0-9]+[smh]$ && ${2:-0} =~ ^[0-9]+$ ]] || usage
number=${1%[smh]}
case $1 in
    *s) end=$((SECONDS + number)) ;;
    *m) end=$((SECONDS + number * 60)) ;;
    *h) end=$((SECONDS + number * 3600)) ;;
esac
seed=${2:-$((RANDOM * 32768 + RANDOM))}
echo "first seed: $seed"

export CACHE_OPS="${CACHE_OPS:-12000}"
export CACHE_HISTORY="${CACHE_HISTORY:-${CARGO_TARGET_DIR:-$PWD/target}/soak}"
unset REDIS_URL
mkdir -p "$CACHE_HISTORY"
log="$CACHE_HISTORY/log"
soaked() { cargo test --quiet --package cache-core --test history "$@"; }
soaked --no-run

histories=0
while [ "$SECONDS" -lt "$end" ]; do
    if ! CACHE_SEED=$seed soaked -- --nocapture near_tier >"$log" 2>&1; then
        cat "$log"
        echo "stopped at seed $seed; again: CACHE_SEED=$seed CACHE_OPS=$CACHE_OPS cargo test -p cache-core --test history"
        exit 1
    fi
    grep -o 'CACHE_SEED=.*' "$log"
    histories=$((histories + 2))
    seed=$((seed + 1))
done
echo "no guarantee was broken in $histories histories"
