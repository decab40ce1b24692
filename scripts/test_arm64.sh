#!/usr/bin/env bash
# Runs the unit tests of what has arm64 code of its own (simd, kernel, quant) under qemu, on a CPU with every extension and
# on one without the dot product.
#
# Needs rustup's target aarch64-unknown-linux-gnu, aarch64-linux-gnu-gcc and qemu-aarch64; as root it installs on Debian and
# Ubuntu what is missing. Exits with 77 where the tests cannot run.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
sysroot=/usr/aarch64-linux-gnu

skip() { echo "arm64 tests cannot run: $1" >&2; exit 77; }
missing() { ! command -v "$1" > /dev/null; }
qemu() { command -v qemu-aarch64-static || command -v qemu-aarch64; }

if { missing aarch64-linux-gnu-gcc || ! qemu > /dev/null; } && [[ $(id -u) == 0 ]] && ! missing apt-get; then
    {
        apt-get -q update && apt-get -q install -y --no-install-recommends \
            gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
    } >&2 < /dev/null || echo 'apt-get could not install the arm64 tools' >&2
fi
missing aarch64-linux-gnu-gcc && skip 'no aarch64-linux-gnu-gcc (Debian package gcc-aarch64-linux-gnu)'
qemu > /dev/null || skip 'no qemu-aarch64 (Debian package qemu-user-static)'
[[ -d $(rustc --print sysroot)/lib/rustlib/$target ]] || rustup target add "$target" >&2 || skip "no Rust target $target"

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=0
binary=$(cargo test --lib --no-run --target "$target" --message-format json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
for cpu in max cortex-a72; do
    echo "-- qemu -cpu $cpu"
    "$(qemu)" -cpu "$cpu" -L "$sysroot" "$binary" --quiet kernel:: simd:: quant::
done
