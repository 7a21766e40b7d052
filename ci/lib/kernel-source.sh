# The upstream material: Linux 7.3's sources, as Debian's trixie-backports carries them.
# Sets $kernel_source to a tree. To be sourced after common.sh.

kernel_release=7.3

# kernel_source_at DIR : use the user's tree.
kernel_source_at() {
    kernel_source=$(cd "$1" 2>/dev/null && pwd) || die "--kernel-source $1: no such directory"
    [ -f "$kernel_source/tools/testing/selftests/iommu/iommufd.c" ] ||
        die "--kernel-source $1: it has no tools/testing/selftests/iommu/iommufd.c"
}

# An apt that has its own lists and its own sources: the machine's stay as they are.
private_apt() {
    local dir=$cache/apt command=$1 archive
    shift
    archive=$(debian_archive)
    mkdir -p "$dir"/{lists/partial,cache/archives/partial,sources}
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local own_user=()
    # apt's own user cannot write below a private home directory.
    [ "$(id -u)" = 0 ] && own_user=(-o APT::Sandbox::User=root)
    printf 'deb [signed-by=%s] %s trixie-backports main\n' "$keyring" "$archive" >"$dir/sources/backports.list"
    "$command" "${own_user[@]}" -q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$dir/sources" \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        -o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/cache" "$@"
}

# fetch_kernel_source : $kernel_source, from the cache or from Debian. The whole tree is kept:
# ci/vm builds a kernel of it.
fetch_kernel_source() {
    kernel_source=$cache/kernel/linux-source-$kernel_release
    [ -f "$kernel_source/Makefile" ] && return 0
    lock kernel-source
    if [ ! -f "$kernel_source/Makefile" ]; then
        install apt xz-utils dpkg debian-archive-keyring
        say "downloading linux-source-$kernel_release (160 MB) from Debian's trixie-backports"
        local work=$cache/kernel/work.$$
        mkdir -p "$work"
        (
            cd "$work"
            private_apt apt-get update
            private_apt apt-get download "linux-source-$kernel_release"
        ) </dev/null >"$cache/kernel/download.log" 2>&1 || {
            tail -n 15 "$cache/kernel/download.log" >&2
            rm -rf "$work"
            die "could not download linux-source-$kernel_release.
Tried: apt-get download linux-source-$kernel_release from trixie-backports of the archive that
/etc/apt/sources.list.d/debian.sources names (log: $cache/kernel/download.log).
By hand: unpack Linux $kernel_release's sources anywhere and pass --kernel-source DIR."
        }
        say "unpacking linux-source-$kernel_release"
        dpkg-deb --fsys-tarfile "$work"/linux-source-*.deb |
            tar -x -O "./usr/src/linux-source-$kernel_release.tar.xz" |
            tar -xJ -C "$work"
        mv "$work/linux-source-$kernel_release" "$kernel_source"
        rm -rf "$work"
    fi
    unlock
}
