# Gives the installed rustc a std for another system. unix-targets and windows source this file.
# Uses a std that `rustup target add` has installed. Otherwise it builds or checks std from the compiler's own sources.

script=${0##*/}
die() { echo "$script: $*" >&2; exit 1; }
say() { echo "[${SECONDS}s] $*"; }

# Sets dir, log, work, version, home and cargo.
begin() { # the arguments of the script
    [ $# -eq 1 ] || die "usage: $script DIR"
    dir=$(realpath -m "$1")
    # Cargo splits its flags at blanks, and env.sh does not quote the path.
    [[ $dir =~ ^[A-Za-z0-9._/+@-]+$ ]] || die "the path $dir may hold only letters, digits and . _ / + @ -."
    mkdir -p "$dir" || die "$dir cannot be created."
    command -v rustc >/dev/null || die "there is no rustc on the PATH."

    version=$(rustc -V) || die "rustc does not run."
    home=$(rustc --print sysroot)
    # Not rustup's proxy of cargo, which may choose another toolchain in another directory.
    cargo=$home/bin/cargo
    [ -x "$cargo" ] || die "there is no cargo in $home/bin, the directory of rustc."
    # Flags for the user's crate would break the build of std.
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUSTC RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER CARGO_BUILD_TARGET

    log=$dir/log
    : >"$log"
    work=$(mktemp -d "$dir/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
}

# Sets flags to the options with which rustc finds a std for the target. No option is needed if one is installed.
provide() { # target, the kind of file in its sysroot, cargo's command that makes std...
    local t=$1 own=$dir/$1
    flags=()
    if installed "$t"; then
        say "$t: std is installed"
        return
    elif [ "$(cat "$own/stamp" 2>/dev/null)" = "$version" ]; then
        say "$t: std was prepared before"
    else
        sources
        build "$own" "$@"
    fi
    flags=(--sysroot="$own")
}

installed() { compgen -G "$(rustc --print target-libdir --target "$1")/libstd-*.rlib" >/dev/null; }

# Sets src to the library directory of the installed rustc's own sources.
src=
sources() {
    [ -z "$src" ] || return 0
    if [ -e "$home/lib/rustlib/src/rust/library/Cargo.lock" ]; then
        # Copies the sources, because cargo may change Cargo.lock.
        cp -r "$home/lib/rustlib/src/rust/library" "$work/library"
        src=$work/library
        return
    fi
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        die "there is neither an installed rust-src nor apt to download one with."
    local keys=/usr/share/keyrings/debian-archive-keyring.gpg mirror number suite found=
    [ -e "$keys" ] || die "the Debian archive keyring is not installed."
    # awk reads all of its input, because apt-get would die of SIGPIPE otherwise.
    mirror=$(apt-get indextargets --no-release-info --format '$(SITE)' | awk '/\/debian\/?$/ && !n++')
    [ -n "$mirror" ] || die "apt has no Debian mirror configured."
    number=$(cut -d' ' -f2 <<<"$version")
    mkdir -p "$work"/apt/{lists,cache/archives}/partial
    # Uses its own lists and cache. So apt's state on this machine stays as it is, and root is not needed.
    local apt=(-o "Dir::Etc::sourcelist=$work/apt/list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o "APT::Sandbox::User=$(id -un)")
    for suite in trixie-backports trixie forky sid; do
        say "looking for rust-src $number in Debian $suite"
        echo "deb [signed-by=$keys] $mirror $suite main" >"$work/apt/list"
        apt-get "${apt[@]}" update -qq >>"$log" 2>&1 || continue
        found=$(apt-cache "${apt[@]}" madison rust-src | awk -v v="$number+" 'index($3, v) == 1 && !n++ { print $3 }')
        [ -z "$found" ] || break
    done
    [ -n "$found" ] || die "Debian has no rust-src for rustc $number, or its mirror cannot be reached (see $log)."
    (cd "$work" && apt-get "${apt[@]}" download -qq "rust-src=$found" >>"$log" 2>&1) ||
        die "rust-src $found could not be downloaded (see $log)."
    dpkg-deb --fsys-tarfile "$work"/rust-src_*.deb |
        tar -x -C "$work" --strip-components=4 --wildcards './usr/src/rustc-*/library' ||
        die "rust-src $found could not be unpacked."
    src=$work/library
    [ -e "$src/sysroot/Cargo.toml" ] || die "rust-src $found is not laid out as expected."
}

# Makes std and moves it into the sysroot.
build() { # sysroot, then the arguments of provide...
    local own=$1 t=$2 kind=$3 new=$work/sysroot-$2
    local lib=$new/lib/rustlib/$t/lib var=CARGO_TARGET_${t^^}_RUSTFLAGS
    shift 3
    say "$t: cargo $1 of std"
    mkdir -p "$lib"
    # Embeds bitcode, as a distribution's std does, for crates that use LTO.
    (cd "$src/sysroot" && env RUSTC_BOOTSTRAP=1 RUSTC="$home/bin/rustc" \
        "${var//-/_}=-Zforce-unstable-if-unmarked -Cembed-bitcode=yes" \
        "$cargo" "$@" -q --target "$t" --target-dir "$work/target") >>"$log" 2>&1 ||
        die "cargo $1 of std failed for $t (see $log)."
    cp "$work/target/$t"/*/deps/*."$kind" "$lib/"
    echo "$version" >"$new/stamp"
    rm -rf "$own"
    mv "$new" "$own"
}

# Prints the lines of env.sh for the flags that provide has set.
exports() { # target
    local var=CARGO_TARGET_${1^^} tool
    var=${var//-/_}
    for tool in RUSTFLAGS RUSTDOCFLAGS; do
        # Unsets a variable that an earlier env.sh may have exported.
        if [ ${#flags[@]} -gt 0 ]; then echo "export ${var}_$tool=${flags[*]}"; else echo "unset ${var}_$tool"; fi
    done
}
