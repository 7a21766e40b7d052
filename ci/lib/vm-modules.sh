# Modules of a Debian kernel for the VM's initramfs. To be sourced.

# pack_modules TREE INTO NAME... : puts the modules and what they depend on into INTO, unpacked,
# with their order of loading in INTO/order. A name that is built in is no module and is left out.
pack_modules() {
    local tree=$1 into=$2 name
    shift 2
    : >"$into/order"
    for name in "$@"; do pack_module "$tree" "$into" "$name"; done
}

pack_module() {
    local tree=$1 into=$2 name=$3 file need
    [ ! -e "$into/$name.ko" ] || return 0
    file=$(find "$tree/kernel" -name "$name.ko*" -o -name "${name//_/-}.ko*" | head -n1)
    [ -n "$file" ] || return 0
    for need in $(modinfo -F depends "$file" | tr , ' '); do pack_module "$tree" "$into" "$need"; done
    case $file in
        *.xz) xz -dc "$file" >"$into/$name.ko" ;;
        *.zst) zstd -qdc "$file" >"$into/$name.ko" ;;
        *) cp "$file" "$into/$name.ko" ;;
    esac
    echo "$name.ko" >>"$into/order"
}
