#!/usr/bin/env bash
# The whole path on one machine: a real model, from a Hugging Face folder to streamed tokens out of a real tritonserver.
# Everything is made in build/demo; the server listens on loopback and is stopped at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
out=build/demo
port=${TRTBUILD_DEMO_PORT:-18001}
rm -rf "$out"
mkdir -p "$out"

run() { printf '\n$ %s\n' "$*"; "$@"; }

model=$(python scripts/demo_model.py)
run trtbuild plan "$model" --quant int8
run trtbuild engine "$model" -o "$out/engine" --quant int8
run trtbuild repo "$out/engine" -o "$out/repo" --tokenizer "$model"

printf '\n$ trtbuild serve %s &\n' "$out/repo"
# serve prints one line on stdout when the server is ready, and ends with the reason when it cannot be.
exec 3< <(exec trtbuild serve "$out/repo" --grpc-port "$port" --http-port $((port + 1)) --metrics-port $((port + 2)) \
  --log-dir "$out/logs")
server=$!
trap 'kill $server 2>/dev/null || true; tail --pid=$server -f /dev/null' EXIT
read -r -u 3 ready
printf '%s\n' "$ready"

run trtbuild generate "The capital of France is" --url "127.0.0.1:$port" --max-tokens 24
question="Name three rivers in Germany."
printf '\n$ echo "%s" | trtbuild chat\n' "$question"
echo "$question" | trtbuild chat --url "127.0.0.1:$port" --tokenizer "$model" --max-tokens 60
echo
