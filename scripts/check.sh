#!/usr/bin/env bash
# Everything that is checked besides the tests: formatting, lints, documentation, each feature alone, the oldest Rust,
# dependencies, packages. Warnings are errors.
set -euo pipefail
cd "$(dirname "$0")/.."

# One build directory for all steps. No step sets RUSTFLAGS: that would rebuild every dependency.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"

step() { printf '\n== %s\n' "$*"; }
notice() { printf '\n!! %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

command -v cargo >/dev/null 2>&1 || fail "cargo is missing; install Rust from https://rustup.rs"

step formatting
cargo fmt --all --check

step "lints, all features"
cargo clippy --workspace --all-targets --all-features -- -D warnings

step "lints, no feature and each alone"
cargo clippy --package cache-core --no-default-features -- -D warnings
features=$(sed -n '/^\[features\]/,/^\[dep/s/^\([a-z][a-z0-9_-]*\) *=.*/\1/p' cache-core/Cargo.toml)
for feature in $features; do
    [ "$feature" = default ] && continue
    printf -- '-- %s\n' "$feature"
    cargo clippy --package cache-core --no-default-features --features "$feature" -- -D warnings
done

step documentation
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --no-deps

minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
step "oldest supported Rust, $minimum"
toolchain=$(rustup toolchain list 2>/dev/null | sed -n "s/^\($minimum\(\.[0-9]*\)\{0,1\}-[^ ]*\).*/\1/p" | head -n 1)
if [ -n "$toolchain" ]; then
    cargo "+$toolchain" check --workspace --all-features
else
    notice "toolchain $minimum is not installed: only what the dependencies declare is compared (and clippy's incompatible_msrv ran above)"
    cargo fetch --quiet
    newer=0
    # What users build: no dev-dependencies, every platform.
    built=$(cargo tree --package cache-core --all-features --edges normal,build --target all --prefix none \
        --no-dedupe --format '{p}' | grep -v '(/' | sort -u)
    while read -r name version _; do
        for manifest in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-${version#v}"/Cargo.toml; do
            declared=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$manifest" | head -n 1)
            newest=$(printf '%s\n%s\n' "$minimum" "$declared" | sort -V | tail -n 1)
            if [ "$newest" != "$minimum" ] && [ "$newest" != "$minimum.0" ]; then
                printf '%s %s needs Rust %s\n' "$name" "$version" "$declared" >&2
                newer=1
            fi
        done
    done <<<"$built"
    [ "$newer" -eq 0 ] || fail "a dependency needs a newer Rust than $minimum"
fi

step dependencies
command -v cargo-deny >/dev/null 2>&1 || cargo install cargo-deny --locked
cargo deny --log-level error check bans licenses sources
# Fetched on its own, so that "no network" and "an advisory was found" are never taken for each other.
if cargo deny fetch db; then
    cargo deny check advisories
else
    notice "THE ADVISORY DATABASE CANNOT BE FETCHED: dependencies were NOT checked for known vulnerabilities"
fi

step packages
# A directory of its own: to cargo an unpacked package never changes under one version, so what an earlier run left of
# ours would be taken for the present one.
packages="$CARGO_TARGET_DIR/packages"
cargo clean --quiet --target-dir "$packages" --package cache-macros --package cache-core
cargo package --package cache-macros --package cache-core --all-features --allow-dirty --target-dir "$packages"

step "examples and benches"
cargo build --workspace --examples
cargo bench --package cache-benches --no-run

step "all checks passed"
