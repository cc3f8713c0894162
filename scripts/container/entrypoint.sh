#!/bin/sh
# Entry point of Dockerfile.trtllm:
#   build RECIPE ...   trtbuild run RECIPE ..., into the folder build where no -o is given
#   serve REPO ...     trtbuild serve REPO on all addresses of the container
#   healthcheck        is the server ready; a container that does something else is healthy
#   anything else      a command of trtbuild where it is one, else a program
set -eu
word=${1:-doctor}
[ $# -eq 0 ] || shift
case $word in
  build)
    case " $* " in
      *" -o"* | *" --output"*) set -- trtbuild run "$@" ;;
      *) set -- trtbuild run "$@" -o build ;;
    esac
    ;;
  serve) set -- trtbuild serve --host 0.0.0.0 "$@" ;;
  healthcheck)
    # Process 1 is this container's command, or `docker run --init`'s, which names this script and the words for it.
    words=$(tr '\0' ' ' <"${TRTBUILD_INIT_CMDLINE:-/proc/1/cmdline}")
    echo "$words" | grep -Eq '(^|[ /])trtbuild(-entrypoint)?( -[^ ]+)* serve ' || exit 0
    port=$(echo "$words" | sed -n 's/.* --http-port[ =]\([0-9][0-9]*\) .*/\1/p')
    url="http://127.0.0.1:${port:-${TRTBUILD_HTTP_PORT:-8000}}/v2/health/ready"
    exec python3 -c "import urllib.request, sys; urllib.request.urlopen(sys.argv[1], timeout=4)" "$url"
    ;;
  *)
    if trtbuild "$word" --help >/dev/null 2>&1; then
      set -- trtbuild "$word" "$@"
    else
      set -- "$word" "$@"
    fi
    ;;
esac
# NVIDIA's own entry point sets the forward compatibility library up where the driver is old, and ends in exec.
nvidia=${NVIDIA_ENTRYPOINT:-/opt/nvidia/nvidia_entrypoint.sh}
[ ! -x "$nvidia" ] || set -- "$nvidia" "$@"
exec "$@"
