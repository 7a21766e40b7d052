# What every script of ci/ begins with: where things are, how to speak, how to install.
# To be sourced by bash.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/softiommu
mkdir -p "$cache"

say() { printf '\n== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# install PACKAGE... : Debian packages that are not there yet.
install() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' ||
            missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] ||
        die "these packages are missing: ${missing[*]}. Install them as root: apt-get install ${missing[*]}"
    command -v apt-get >/dev/null || die "there is no apt-get; supply by hand: ${missing[*]}"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # The lists may be old or absent: fetch them when the first try finds nothing.
    apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >"$cache/apt.log" 2>&1 ||
        { apt-get update -q </dev/null >>"$cache/apt.log" 2>&1 &&
            apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >>"$cache/apt.log" 2>&1; } ||
        { tail -n 20 "$cache/apt.log" >&2; die "apt-get install ${missing[*]} failed, see $cache/apt.log"; }
}

# The compiler: any cargo from 1.88 on. rustup brings one where there is none: Debian's (from trixie
# on), else its own installer.
need_rust() {
    install gcc libc6-dev pkg-config
    [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    local have
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
    if [ -z "$have" ] || [ "$(printf '%s\n1.88.0\n' "$have" | sort -V | head -n1)" != 1.88.0 ]; then
        say "installing the stable Rust toolchain"
        if [ "$(id -u)" = 0 ] && { apt-get update -q && apt-get install -y -q rustup; } </dev/null >"$cache/rustup.log" 2>&1; then
            rustup default stable
        else
            install curl ca-certificates
            local installer=$cache/rustup-init
            curl --proto =https -fsSL -o "$installer" \
                "https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init" &&
                chmod +x "$installer" && "$installer" -y -q --profile minimal --no-modify-path &&
                PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
        fi || die "no Rust toolchain of 1.88 or later (found '${have:-none}'); get one from rustup, then run this again"
    fi
}

# lock NAME : one script at a time makes NAME in the cache; the lock ends with the script.
lock() {
    exec {lock_fd}>"$cache/$1.lock"
    flock -n "$lock_fd" || { say "waiting for another run that makes $1"; flock "$lock_fd"; }
}
unlock() { exec {lock_fd}>&-; }
