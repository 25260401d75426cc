#!/bin/sh
# The weights have one digest, whatever the number of processes that train them on the one GPU, and whether one of them is
# killed on the way. In f32 it is the processor's.
#
#   processes.sh OUT [ARG…]     ARGs go to each `elastic submit`, such as --set train.epochs=1
#
# ELASTIC_BIN and ELASTIC_JOB name the program and the job, if not those beside this file; ELASTIC_GPU_WORKERS the numbers
# of processes beside 1 (2 4), of which the last has one killed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
elastic=${ELASTIC_BIN:-$here/elastic}
job=${ELASTIC_JOB:-$here/digits/job.toml}
out=$1
shift
rm -rf "$out"
mkdir -p "$out" || exit 2
failures=0

# Trains, and leaves the digest in `sha`; empty if that failed.
train() {
  name=$1
  shift
  sha=
  if ! "$elastic" submit "$job" --local --json --runs "$out/$name" "$@" >"$out/$name.json" 2>"$out/$name.log"; then
    tail -n 5 "$out/$name.log" "$out/$name.json"
    return
  fi
  sha=$(tail -n 1 "$out/$name.json" | sed -n 's/.*"weights_sha256": *"\([0-9a-f]\{64\}\)".*/\1/p')
}

# The digest of a run is the one that is wanted.
check() {
  if [ -n "$sha" ] && [ "$sha" = "$2" ]; then
    echo "PASS $1: $sha"
  else
    echo "FAIL $1: ${sha:-no digest}, not ${2:-a digest that is not there}"
    failures=$((failures + 1))
  fi
}

for dtype in f32 bf16; do
  set_dtype="train.dtype=$dtype"
  if [ $dtype = f32 ]; then
    train cpu --workers 1 --set resources.device=cpu --set "$set_dtype" "$@"
    wanted=$sha
    echo "$dtype on the processor: ${wanted:-no digest}"
    train $dtype-1 --workers 1 --set resources.device=cuda --set "$set_dtype" "$@"
    check "$dtype, 1 process on the GPU, as the processor" "$wanted"
  else
    train $dtype-1 --workers 1 --set resources.device=cuda --set "$set_dtype" "$@"
    wanted=$sha
    echo "$dtype, 1 process on the GPU: ${wanted:-no digest}"
  fi
  for workers in ${ELASTIC_GPU_WORKERS:-2 4}; do
    train $dtype-$workers --workers $workers --set resources.device=cuda --set "$set_dtype" "$@"
    check "$dtype, $workers processes on the GPU" "$wanted"
  done
  once=$out/$dtype-once
  mkdir "$once"
  export ELASTIC_FAIL=after-contribute:20:kill ELASTIC_FAIL_ONCE="$once"
  train $dtype-killed --workers $workers --set resources.device=cuda --set "$set_dtype" "$@"
  unset ELASTIC_FAIL ELASTIC_FAIL_ONCE
  check "$dtype, $workers processes on the GPU, one of them killed" "$wanted"
  killed=$(ls "$once" | wc -l)
  if [ "$killed" != 1 ]; then
    echo "FAIL $dtype: $killed processes were killed, not 1"
    failures=$((failures + 1))
  fi
done
[ $failures = 0 ]
