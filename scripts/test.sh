#!/usr/bin/env bash
# Runs every test and doc test, and builds the examples.
#
#   scripts/test.sh                        everything
#   scripts/test.sh --times 10             everything, ten times in a row, each with another seed and one core kept busy
#   scripts/test.sh --test coherence       other arguments go to `cargo test`
#
# Stops at the first run that fails, and prints its seed.
#
# The tests start their own redis-server on free ports. Where the program is missing this script installs it: through
# apt-get on Debian and Ubuntu (with sudo unless root), through brew on macOS.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# Runs a command with the rights to install packages.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif has sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        sudo "$@"
    else
        return 1
    fi
}

# Installs Debian packages without letting them start a service: a policy-rc.d that refuses is Debian's way to say so.
# Ours exists only meanwhile, hence the subshell with its own trap; one that was there before stays as it is.
apt_install() (
    policy=/usr/sbin/policy-rc.d
    as_root true || fail "no rights to install packages (not root, no sudo); have this run, then try again:
  apt-get install $*"
    if [ ! -e "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    as_root apt-get update -q >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >&2
)

has cargo || fail "cargo is missing; install Rust from https://rustup.rs"
if ! has cc || ! has redis-server; then
    if has apt-get; then
        packages=()
        has cc || packages+=(gcc libc6-dev)
        has redis-server || packages+=(redis-server)
        say "installing ${packages[*]}"
        apt_install "${packages[@]}"
    elif has brew && has cc; then
        say "installing redis"
        brew install redis >&2
    elif [ "$(uname)" = Darwin ]; then
        fail "install a C compiler (xcode-select --install), Homebrew (https://brew.sh) and brew install redis, then try again"
    else
        fail "install a C compiler (cc) and redis-server 6.2 or later with your package manager, then try again"
    fi
    for program in cc redis-server; do
        has "$program" || fail "$program is still not on the PATH"
    done
fi

# The oldest server the library supports.
version=$(redis-server --version | sed -n 's/.* v=\([0-9.]*\).*/\1/p')
oldest=$(printf '6.2\n%s\n' "$version" | sort -V | head -n 1)
[ "$oldest" = 6.2 ] || fail "redis-server is $version, the tests need 6.2 or later"
say "redis-server $version"

# The tests use the servers they start themselves, whatever the environment names.
unset REDIS_URL REDISRS_SERVER_BIN REDISRS_SERVER_TYPE

times=1
if [ "${1:-}" = --times ]; then
    [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--times needs a number of runs, such as 10"
    times=$2
    shift 2
fi

output=$(mktemp)
busy=""
cleanup() {
    rm -f "$output"
    [ -z "$busy" ] || kill "$busy" 2>/dev/null || true
}
trap cleanup EXIT

# Runs everything once. What is random in the tests follows from the seed; how threads interleave does not.
run() {
    local seed=$1 status=0 totals again
    shift
    export PROPTEST_RNG_SEED=$seed SHUTTLE_RANDOM_SEED=$seed
    again="PROPTEST_RNG_SEED=$seed SHUTTLE_RANDOM_SEED=$seed"
    # Alone, the histories run the seeds they name themselves.
    if [ "$times" -gt 1 ]; then
        export CACHE_SEED=$seed
        again="$again CACHE_SEED=$seed"
    fi
    cargo test --workspace --all-features --no-fail-fast "$@" | tee "$output" || status=$?

    # One line over all test binaries. An ignored test is a skipped one, and nothing here may be skipped unnoticed.
    totals=$(awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
        END { printf "%d passed, %d failed, %d skipped", passed, failed, ignored }' "$output")
    printf '\n%s\n' "$totals"
    if [ "$status" -ne 0 ]; then
        say "failed with seed $seed; again: $again cargo test --workspace --all-features"
        exit "$status"
    fi
    if [ $# -eq 0 ]; then
        case $totals in
            "0 passed"*) fail "no test ran" ;;
            *", 0 skipped") ;;
            *) fail "some tests are marked #[ignore] or \`\`\`ignore: say how they can run, or remove them" ;;
        esac
    fi
}

if [ "$times" -gt 1 ]; then
    cargo test --workspace --all-features --no-run
    # One core has other work to do, as on a machine that serves.
    while :; do :; done &
    busy=$!
fi
for ((turn = 1; turn <= times; turn++)); do
    run "${SEED:-$((RANDOM * 32768 + RANDOM))}" "$@"
    [ "$times" -eq 1 ] || say "run $turn of $times: green"
done
