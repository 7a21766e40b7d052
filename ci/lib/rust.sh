# The compiler: any cargo from 1.88 on. To be sourced after common.sh.

rust_release=1.88.0

# rust_is_there : sets $have to cargo's release.
rust_is_there() {
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
    [ -n "$have" ] && [ "$(printf '%s\n%s\n' "$have" $rust_release | sort -V | head -n1)" = $rust_release ]
}

# need_rust : finds or installs one. Debian's own comes first, as it needs no other archive.
need_rust() {
    install gcc libc6-dev pkg-config ca-certificates
    [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    local have way
    rust_is_there && return 0
    say "installing a Rust toolchain"
    : >"$cache/rust.log"
    for way in rust_of_backports rust_of_rustup_package rust_of_rustup_installer; do
        $way </dev/null >>"$cache/rust.log" 2>&1 && hash -r && rust_is_there && return 0
    done
    tail -n 20 "$cache/rust.log" >&2
    die "no Rust toolchain of $rust_release or later (found '${have:-none}'; log: $cache/rust.log).
Tried: cargo of trixie-backports, Debian's rustup package, rustup's own installer.
By hand: any cargo with rustc, clippy and rustfmt in PATH."
}

# Debian's, on the release that has a new one in its backports. The machine's own sources and lists
# stay as they are.
rust_of_backports() {
    [ "$(id -u)" = 0 ] && grep -q '^VERSION_CODENAME=trixie' /etc/os-release || return 1
    local dir=$cache/apt/rust archive
    mkdir -p "$dir"/{lists/partial,sources}
    cp -f /etc/apt/sources.list.d/* "$dir/sources/" 2>/dev/null || true
    archive=$(debian_archive)
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s trixie-backports main\n' \
        "$archive" >"$dir/sources/softiommu-backports.list"
    local apt=(apt-get -q -o Dir::Etc::SourceParts="$dir/sources" -o Dir::State::Lists="$dir/lists"
        -o APT::Sandbox::User=root)
    "${apt[@]}" update &&
        DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends -t trixie-backports \
            cargo rustc rust-clippy rustfmt
}

rust_of_rustup_package() {
    [ "$(id -u)" = 0 ] && apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q rustup &&
        rustup default stable
}

rust_of_rustup_installer() {
    install curl
    local installer=$cache/rustup-init
    curl --proto =https -fsSL -o "$installer" \
        "https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init" &&
        chmod +x "$installer" && "$installer" -y -q --profile default --no-modify-path &&
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
}
