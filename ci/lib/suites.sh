# The upstream suites, built from $kernel_source. Sets $suites to the directory of the programs.
# To be sourced after kernel-source.sh.

build_suites() {
    install gcc make libc6-dev libcap-dev rsync
    local key
    key=$( (cd "$kernel_source" && cat tools/testing/selftests/iommu/*.[ch] \
        drivers/iommu/iommufd/iommufd_test.h include/uapi/linux/iommufd.h Makefile; cat "${BASH_SOURCE[0]}") |
        sha256sum | cut -c1-16)
    suites=$cache/suites/$key
    [ -f "$suites/built" ] && return 0
    lock suites
    if [ ! -f "$suites/built" ]; then
        say "building the upstream suites"
        mkdir -p "$suites"
        local log=$suites/build.log
        make -s -C "$kernel_source" O="$suites/headers" headers </dev/null >"$log" 2>&1 ||
            { tail -n 20 "$log" >&2; die "make headers failed, see $log"; }
        local name
        for name in iommufd iommufd_fail_nth; do
            # The suite's own flags; its Makefile wants headers installed in the tree.
            gcc -O2 -D_GNU_SOURCE -w -isystem "$suites/headers/usr/include" \
                -I"$kernel_source/tools/testing/selftests" \
                "$kernel_source/tools/testing/selftests/iommu/$name.c" -o "$suites/$name" -lcap >>"$log" 2>&1 ||
                { tail -n 20 "$log" >&2; die "building $name failed, see $log"; }
        done
        chmod -R a+rX "$suites"
        touch "$suites/built"
    fi
    unlock
}
