#!/bin/sh
# install.sh DIST [PACKAGES...]: installs the wheel in DIST, and PACKAGES that are missing, over a Python that must not
# change: every package that is there is a constraint, and afterwards each must still be there in its version.
# A word may hold several packages with spaces between them, as a build argument is one word.
set -eu
dist=$1
shift
set -f # the brackets of extras are no patterns
# shellcheck disable=SC2048,SC2086 # they are to be split
set -- $*
set +f
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m pip list --format=freeze | sort >"$scratch/before"
# pip itself, and lines that are no plain version (editable or local installs), cannot be constraints.
grep -E '^[A-Za-z0-9._-]+==[^ ]+$' "$scratch/before" | grep -v '^pip==' >"$scratch/constraints" || true
"$python" -m pip install --no-cache-dir --root-user-action=ignore --constraint "$scratch/constraints" "$dist"/*.whl "$@"
"$python" -m pip list --format=freeze | sort >"$scratch/after"
changed=$(comm -23 "$scratch/before" "$scratch/after")
if [ -n "$changed" ]; then
  echo "these packages of the image were changed or removed:" "$changed" >&2
  exit 1
fi
