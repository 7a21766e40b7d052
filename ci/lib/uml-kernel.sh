# Linux as a program (User Mode Linux), whose iommufd is to answer as an x86's does.
# To be sourced after kernel-source.sh.

# uml_kernel : sets $uml_kernel to the program, which is built once for each configuration.
uml_kernel() {
    local key build dir=$top/ci/uml.d file
    key=$(cat "$dir"/*.config "$dir"/*.h "$top/ci/lib/uml-kernel.sh" "$kernel_source/Makefile" | sha256sum | cut -c1-16)
    uml_kernel=$cache/vm/uml-$key/linux
    [ -f "$uml_kernel" ] && return 0
    lock uml-kernel
    if [ ! -f "$uml_kernel" ]; then
        build=$cache/vm/build-uml
        rm -rf "$build"
        mkdir -p "$build/arch/um/kernel/skas" "${uml_kernel%/*}"
        say "building the kernel as a program: about 4 minutes on 2 cores, once (log: $build/log)"
        # Files of the build's directory come before those of the tree, which stays as it is: page
        # faults of devices, which x86's IOMMU drivers select; and lengths of 2 GiB and more in
        # copies to and from callers, which UML takes for negative.
        sed 's/^\tselect ARCH_HAS_KCOV$/&\n\tselect IOMMU_IOPF/' "$kernel_source/arch/um/Kconfig" >"$build/arch/um/Kconfig"
        file=arch/um/kernel/skas/uaccess.c
        sed 's/^\(static long buffer_op(unsigned long addr, \)int len/\1long len/' "$kernel_source/$file" >"$build/$file"
        ! cmp -s "$kernel_source/$file" "$build/$file" || die "$file is not as it was: UML needs a look"
        {
            make -C "$kernel_source" O="$build" ARCH=um tinyconfig
            "$kernel_source/scripts/kconfig/merge_config.sh" -m -O "$build" "$build/.config" "$dir/kernel.config"
            make -C "$kernel_source" O="$build" ARCH=um olddefconfig
            make -C "$kernel_source" O="$build" ARCH=um -j"$(nproc)" \
                "CFLAGS_iommu.o=-I$kernel_source/drivers/iommu -include $dir/iommu.h" \
                "CFLAGS_io_pagetable.o=-include $dir/io_pagetable.h" linux
        } </dev/null >"$build/log" 2>&1 || { tail -n 20 "$build/log" >&2; die "the kernel did not build, see $build/log"; }
        cp "$build/linux" "$uml_kernel.new"
        mv "$uml_kernel.new" "$uml_kernel"
        rm -rf "$build"
    fi
    unlock
}
