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

# The Debian archive that this machine uses already, in either format of its file.
debian_archive() {
    local sources=() file archive
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        [ -r "$file" ] && sources+=("$file")
    done
    archive=$(sed -nE 's/^URIs: *(\S+).*/\1/p; s/^deb +(\[[^]]*\] +)?(\S+).*/\2/p' "${sources[@]}" /dev/null |
        grep -v security | head -n1)
    printf '%s' "${archive:-http://deb.debian.org/debian}"
}

# lock NAME : one script at a time makes NAME in the cache; the lock ends with the script.
lock() {
    exec {lock_fd}>"$cache/$1.lock"
    flock -n "$lock_fd" || { say "waiting for another run that makes $1"; flock "$lock_fd"; }
}
unlock() { exec {lock_fd}>&-; }

. "$top/ci/lib/rust.sh"
