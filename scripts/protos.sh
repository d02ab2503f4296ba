#!/bin/bash
# Generates the stubs of protos/ with their types.
# usage: scripts/protos.sh           into the tree
#        scripts/protos.sh --check   into a temporary directory; exit 1 when the committed ones differ
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

generate() {
    local out=$1 file
    for file in protos/*/*.proto protos/*/*/*.proto; do
        [ -e "$file" ] || continue
        local outs=("--python_out=$out" "--pyi_out=$out")
        # A file without a service gets no empty grpc module.
        if grep -q '^service ' "$file"; then
            outs+=("--grpc_python_out=$out" "--plugin=protoc-gen-mypy_grpc=.venv/bin/protoc-gen-mypy_grpc" "--mypy_grpc_out=quiet:$out")
        fi
        .venv/bin/python -m grpc_tools.protoc -I protos "${outs[@]}" "$file"
    done
}

if [ "${1:-}" != --check ]; then
    generate .
    exit
fi

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
generate "$fresh"
failed=0
# Both ways: a stub whose proto is gone is drift too.
while read -r stub; do
    if ! diff -q "$fresh/$stub" "$stub" >/dev/null 2>&1; then
        echo "$stub does not come from protos/: run make protos" >&2
        failed=1
    fi
done < <({ (cd "$fresh" && find . -name '*_pb2*.py*' -type f); find ./pilfer ./etcd -name '*_pb2*.py*' -not -path '*/__pycache__/*' -type f; } | sort -u)
exit $failed
