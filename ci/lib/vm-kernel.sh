# The VM's kernels: ours, built from $kernel_source (one of them to be measured), and Debian's own
# image.
# Each sets $vm_kernel to a bzImage and $vm_modules to a directory of modules or nothing.
# To be sourced after kernel-source.sh.

# vm_kernel_upstream : built once for each configuration.
vm_kernel_upstream() {
    vm_kernel_build upstream "$top/ci/vm.d/kernel.config"
}

# vm_kernel_coverage : the same, in which gcov counts the lines of drivers/iommu/iommufd. What gcov
# needs to know of the build is kept in $vm_kernel's directory.
vm_kernel_coverage() {
    local file words=()
    for file in "$kernel_source"/drivers/iommu/iommufd/*.c; do
        file=${file##*/}
        # By the object's name on make's command line: the tree stays as it is. Other directories
        # have objects of these names, too (the boot code's main.o, which has no gcov).
        [ "$file" = selftest.c ] ||
            words+=("GCOV_PROFILE_${file%.c}.o=\$(if \$(filter drivers/iommu/iommufd,\$(obj)),y)")
    done
    vm_kernel_make=("${words[@]}")
    cat "$top/ci/vm.d/kernel.config" "$top/ci/vm.d/coverage.config" >"$cache/vm-coverage.config"
    vm_kernel_build coverage "$cache/vm-coverage.config"
    vm_kernel_make=()
}

vm_kernel_make=()
# vm_kernel_build NAME CONFIG : sets $vm_kernel to what make and $vm_kernel_make make of it.
vm_kernel_build() {
    local key build name=$1 config=$2
    key=$(cat "$config" "$kernel_source/Makefile" | sha256sum | cut -c1-16)
    vm_kernel=$cache/vm/$name-$key/bzImage
    vm_modules=
    [ -f "$vm_kernel" ] && return 0
    install gcc make flex bison bc libelf-dev libssl-dev perl python3 rsync cpio
    lock vm-kernel
    if [ ! -f "$vm_kernel" ]; then
        build=$cache/vm/build
        mkdir -p "$build" "${vm_kernel%/*}"
        say "building the VM's kernel: about 6 minutes on 2 cores, once (log: $build/log)"
        {
            make -C "$kernel_source" O="$build" tinyconfig
            "$kernel_source/scripts/kconfig/merge_config.sh" -m -O "$build" \
                "$build/.config" "$config"
            make -C "$kernel_source" O="$build" olddefconfig
            make -C "$kernel_source" O="$build" -j"$(nproc)" "${vm_kernel_make[@]}" bzImage
        } </dev/null >"$build/log" 2>&1 || { tail -n 20 "$build/log" >&2; die "the kernel did not build, see $build/log"; }
        local option missing=()
        while IFS= read -r option; do
            grep -qxF "$option" "$build/.config" || missing+=("$option")
        done < <(grep -E '^CONFIG_.*=y$' "$config")
        [ ${#missing[@]} = 0 ] || say "not in the kernel: ${missing[*]}"
        cp "$build/.config" "${vm_kernel%/*}/config"
        (cd "$build" && find drivers/iommu/iommufd -name '*.gcno' -exec cp --parents {} "${vm_kernel%/*}" \;)
        cp "$build/arch/x86/boot/bzImage" "$vm_kernel.new"
        mv "$vm_kernel.new" "$vm_kernel"
        rm -rf "$build"
    fi
    unlock
}

# vm_kernel_debian : the newest 7.3 image of trixie-backports, as Debian ships it.
vm_kernel_debian() {
    local dir=$cache/vm/debian
    vm_kernel=$dir/bzImage
    vm_modules=$dir/modules
    [ -f "$vm_kernel" ] && return 0
    install apt dpkg debian-archive-keyring kmod
    lock vm-debian
    if [ ! -f "$vm_kernel" ]; then
        local work=$dir/work version
        mkdir -p "$work"
        say "downloading Debian's kernel image (about 110 MB)"
        (
            cd "$work"
            private_apt apt-get update
            version=$(private_apt apt-cache pkgnames "linux-binary-$kernel_release" |
                sed -nE 's/^linux-binary-(.*deb[0-9]+-amd64)$/\1/p' | sort -V | tail -n1)
            [ -n "$version" ]
            private_apt apt-get download "linux-binary-$version" "linux-modules-$version"
            for deb in *.deb; do dpkg-deb -x "$deb" tree; done
        ) </dev/null >"$dir/log" 2>&1 || { tail -n 20 "$dir/log" >&2; die "could not get Debian's kernel image, see $dir/log"; }
        rm -rf "$vm_modules"
        mkdir -p "$vm_modules"
        mv "$work"/tree/usr/lib/modules/* "$vm_modules/" 2>/dev/null || mv "$work"/tree/lib/modules/* "$vm_modules/"
        mv "$work"/tree/boot/vmlinuz-* "$vm_kernel.new" 2>/dev/null ||
            mv "$vm_modules"/*/vmlinuz "$vm_kernel.new"
        depmod -b "$work/none" 2>/dev/null || true
        rm -rf "$work"
        mv "$vm_kernel.new" "$vm_kernel"
    fi
    unlock
}
