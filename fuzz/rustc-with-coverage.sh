#!/bin/sh
# Called by Cargo as RUSTC_WORKSPACE_WRAPPER: the compiler with LLVM's coverage for libFuzzer, for the crates of this
# workspace only, so that their dependencies are those of every other build. All flags are stable ones.
exec "$@" --cfg fuzzing \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-sanitizer-coverage-prune-blocks=0 \
    -Coverflow-checks=yes \
    -Cdebug-assertions=yes
