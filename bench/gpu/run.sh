#!/bin/sh
# Proves the engine on this machine's GPU, and measures it. Needs NVIDIA's driver and, for what compares, python3 with torch.
#
#   ./run.sh              every part, in order
#   ./run.sh ops gpt2     some parts
#
# What is said is kept in `out` beside this file, or where ELASTIC_GPU_OUT says: a log for each part, summary.txt, figures.json
# (one object a line), and all of it in logs.tar.gz. A part that fails, hangs or cannot run here does not keep the others from
# running. Inside a part, exit code 3 says that there is nothing to test; the last line says why.
#
# Exit codes: 0 all passed or was skipped with its reason, 1 something failed, 2 no such part, 3 there is no GPU to test.
set -u
all="machine selftest ops networks sanitizer processes nccl digits gpt2"

# Seconds. Some times what a part should take; no part may keep a machine for ever.
limit_of() {
  case $1 in
  machine) echo 60 ;;
  selftest | nccl) echo 180 ;;
  gpt2 | sanitizer) echo 540 ;;
  *) echo 300 ;;
  esac
}

part_machine() {
  date -u
  uname -srm
  echo "$(nproc) processors, $(getconf GNU_LIBC_VERSION 2>/dev/null)"
  [ ! -f version.txt ] || cat version.txt
  if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
  if command -v python3 >/dev/null; then
    python3 -c 'import torch; print("torch", torch.__version__, "for CUDA", torch.version.cuda)' || echo "python3 has no torch"
  else
    echo "no python3 on PATH"
  fi
  ./elastic devices --need-gpu
}

part_selftest() { ./elastic-selftest; }

part_ops() { ELASTIC_TEST_DEVICE=gpu ./ops; }

part_networks() { ELASTIC_TEST_DEVICE=gpu ./networks; }

# Each of NVIDIA's checks over the self-test, and over the ops' cases of few numbers: what it watches is slow.
part_sanitizer() {
  sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
  if [ ! -x "$sanitizer" ]; then
    echo "compute-sanitizer is not on PATH and not in ${CUDA_HOME:-/usr/local/cuda}/bin"
    return 3
  fi
  failed=0
  for check in memcheck racecheck initcheck synccheck; do
    for program in elastic-selftest ops; do
      set -- "./$program"
      [ "$program" != ops ] || set -- "$@" --test-threads=1
      ELASTIC_TEST_DEVICE=gpu ELASTIC_TEST_NUMBERS_MAX=2048 \
        "$sanitizer" --tool "$check" --error-exitcode 99 "$@" >"$out/sanitizer-$check-$program.log" 2>&1
      code=$?
      if grep -q "Device not supported" "$out/sanitizer-$check-$program.log"; then
        echo "compute-sanitizer refuses this machine's GPU: Device not supported"
        return 3
      fi
      if [ "$code" = 0 ]; then
        echo "$check of $program: clean"
      else
        failed=1
        echo "$check of $program: FAILED, exit code $code"
        tail -n 40 "$out/sanitizer-$check-$program.log"
      fi
    done
  done
  return $failed
}

part_processes() { ./processes.sh "$out/processes"; }

# Init, all-reduce, abort, new communicator, for 1 and 2 ranks that share the GPU.
part_nccl() {
  ./elastic-nccl-selftest --json >"$out/nccl-said.json"
  code=$?
  sed 's/^{/{"figure":"nccl",/' "$out/nccl-said.json"
  return $code
}

part_digits() { measure 1000 digits f32 32; }

part_gpt2() { measure 20 gpt2 bf16 16; }

# A model's step with 1 and with 16 shards; beside PyTorch's in the same run where there is PyTorch.
measure() {
  steps=${ELASTIC_GPU_STEPS:-$1} model=$2 dtype=$3 batch=$4
  if command -v python3 >/dev/null; then
    export ELASTIC_STEP_BIN="$PWD/step"
    python3 bench/compare.py --device cuda --only "$model" --dtype "$dtype" --steps "$steps" --turns 3
    return
  fi
  echo "no python3 on PATH: only our own step is measured"
  for shards in 1 16; do ./step time "$steps" "$model" "$dtype" 1 $shards "$batch" cuda || return 1; done
}

# ---

start=$PWD
cd "$(dirname "$0")" || exit 2
out=${ELASTIC_GPU_OUT:-$PWD/out}
case $out in /*) ;; *) out=$start/$out ;; esac
mkdir -p "$out" || exit 2
# Machine code made beforehand; nothing is written to the person's own cache.
if [ -d cubins ]; then ELASTIC_CUBINS=$PWD/cubins; export ELASTIC_CUBINS; fi
XDG_CACHE_HOME=${XDG_CACHE_HOME:-$out/cache}
export XDG_CACHE_HOME

if [ "${1:-}" = --inside ]; then
  "part_$2"
  exit
fi

for part in "$@"; do
  case " $all " in *" $part "*) continue ;; esac
  echo "no part is called $part; there are: $all" >&2
  exit 2
done

if ! ./elastic devices --need-gpu >"$out/devices.log" 2>&1; then
  cat "$out/devices.log"
  echo "no GPU to test"
  exit 3
fi
devices=$(./elastic devices --json)
card=$(echo "$devices" | sed -n 's/.*"gpus":\[{[^}]*"name":"\([^"]*\)".*/\1/p')
cuda=$(echo "$devices" | sed -n 's/.*"version":"for CUDA \([^"]*\)".*/\1/p')
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
about="\"date\":\"$(date -u +%Y-%m-%dT%H:%M:%SZ)\",\"card\":\"$card\",\"driver\":\"$driver\",\"cuda\":\"$cuda\""
: >"$out/figures.json"
: >"$out/summary.txt"
failures=0

# Runs one part, and adds its line to the summary and its figures to the others'.
run() {
  part=$1
  limit=${ELASTIC_GPU_LIMIT:-$(limit_of "$part")}
  log=$out/$part.log
  echo "== $part, $limit s at most"
  begin=$(date +%s)
  timeout -k 10 "$limit" "./$(basename "$0")" --inside "$part" >"$log" 2>&1
  code=$?
  took=$(($(date +%s) - begin))
  grep -h '^{.*"figure": *"' "$log" | sed "s|^{|{$about,\"part\":\"$part\",|" >>"$out/figures.json"
  case $code in
  0) result=passed note= ;;
  3) result=skipped note=$(tail -n 1 "$log") ;;
  124 | 137) result=FAILED note="not done after $limit s" ;;
  *) result=FAILED note="exit code $code, see $part.log" ;;
  esac
  if [ "$result" = FAILED ]; then
    failures=$((failures + 1))
    tail -n 40 "$log"
  fi
  printf '%-10s %-8s %5s s  %s\n' "$part" "$result" "$took" "$note" | tee -a "$out/summary.txt"
}

[ $# -gt 0 ] || set -- $all
for part in "$@"; do run "$part"; done

echo
echo "$card, driver $driver, CUDA $cuda"
cat "$out/summary.txt"
echo "figures: $out/figures.json"
(cd "$out" && find . -name '*.log' -o -name '*.txt' -o -name '*.json' | tar -czf logs.tar.gz -T -)
[ "$failures" = 0 ]
