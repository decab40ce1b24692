#!/usr/bin/env bash
# Checks and measures the GPU backends on the machine it runs on, in under nine minutes: builds (or takes what PHI and TESTS
# name), lists the devices, runs every kernel against the CPU's and whole models with layers on the device, then measures a
# model of Phi-3.5-mini's shape. Figures go to stdout.
#
#   scripts/gpu-check.sh                                  builds with cargo
#   PHI=phi TESTS='phi-lib-tests gpu-tests' scripts/gpu-check.sh   takes binaries that were built elsewhere, e.g. by
#                                                         `cargo test --release --no-run`, for a machine without cargo
#   MODEL=phi-q4_k_m.gguf LLAMA_BENCH=build/bin/llama-bench scripts/gpu-check.sh
#                                                         measures that file, alternating with llama.cpp's llama-bench
#   TEST_THREADS=8 scripts/gpu-check.sh                   how many tests at a time
#   BACKENDS='wgpu cuda' REPEAT=5 scripts/gpu-check.sh    which backends, and how many alternations
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step build
if [[ -z ${PHI:-} ]]; then
    cargo build --release
    PHI=target/release/phi
    mapfile -t built < <(cargo test --release --no-run --lib --test gpu --message-format json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
    TESTS="${built[*]}"
fi

step devices
command -v nvidia-smi > /dev/null && nvidia-smi -L
"$PHI" run --list-devices

step 'kernels and models against the CPU'
for test in ${TESTS:-}; do
    # Of the library's tests, those of the backends.
    filter=()
    "$test" --list | grep -c '^backend::' > /dev/null && filter=(backend::)
    "$test" "${filter[@]}" --test-threads "${TEST_THREADS:-2}" 2>&1 | grep -E '^test |panicked|skipped' || true
done

help=$("$PHI" bench --help)
measure() { # BACKEND TESTS…
    local backend=()
    [[ $help == *--gpu-backend* ]] && backend=(--gpu-backend "$1")
    shift
    local model=(--shape phi-3.5-mini --type Q4_K_M)
    [[ -n ${MODEL:-} ]] && model=(-m "$MODEL")
    "$PHI" bench "${model[@]}" -ngl all "${backend[@]}" -r 3 "$@" 2> /dev/null | tail -n +3 || echo "no figures: $*"
}

for backend in ${BACKENDS:-cuda wgpu}; do
    step "speed, $backend"
    for _ in $(seq "${REPEAT:-5}"); do
        measure "$backend" -p 512 -n 128
        if [[ -n ${LLAMA_BENCH:-} && -n ${MODEL:-} ]]; then
            "$LLAMA_BENCH" -m "$MODEL" -ngl 99 -p 512 -n 128 -r 3 2> /dev/null | grep -E 'pp512|tg128'
        fi
    done
    measure "$backend" -p 4096 -n 0
    measure "$backend" -p 0 -n 64 -d 4096
    measure "$backend" -p 0 -n 64 -np 8
done
step done
