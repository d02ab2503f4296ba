#!/bin/bash
# All tests that this machine can run, in groups that do not hinder each other. Needs what `setup.sh --witness` makes.
# usage: scripts/test.sh [--again]
# --again: what fails is run once more when all else is over, alone and in sight; what fails twice fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

AGAIN=no
[ "${1:-}" = --again ] && AGAIN=yes

# What needs nothing of the machine but its processors. It has some directories to itself (tests/unit/test_tooling.py):
# each process of the other groups would need 6 s to collect them and would find nothing.
COMPUTES="not etcd and not isolation and not node and not cluster and not witness"
ELSEWHERE=(--ignore tests/unit --ignore tests/model --ignore tests/simulation --ignore tests/cluster_live)
# What measures shares of the processors.
ALONE=(tests/hostile/test_cpu_io.py)

# A shell lets what it starts in the background ignore interrupts, and nohup hangups; tests, and what they start, must
# know them.
PYTEST=(env --default-signal=HUP,INT,QUIT .venv/bin/python -m pytest)
# For each group one of its own: two at the same time would forget each other's failures. Only those of this run count.
CACHES=.pytest_cache/groups
rm -rf $CACHES
declare -A status=([computes]=0 [live]=0 [alone]=0 [cluster]=0)

output=$(mktemp)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -f "$output"' EXIT
trap 'exit 130' INT TERM

# What starts, freezes and kills processes waits for half of its time: four files at a time fit beside each other, and
# what computes beside them.
"${PYTEST[@]}" -o cache_dir=$CACHES/computes -q -n auto -m "($COMPUTES) and not long" >"$output" 2>&1 &
"${PYTEST[@]}" -o cache_dir=$CACHES/live -n 4 --dist loadfile -m "not ($COMPUTES) and not long" "${ELSEWHERE[@]}" \
    "${ALONE[@]/#/--ignore=}" || status[live]=$?
wait $! || status[computes]=$?
cat "$output"

"${PYTEST[@]}" -o cache_dir=$CACHES/alone -m "not long" "${ALONE[@]}" || status[alone]=$?

# Clusters have the machine to themselves. They wait even more, for leases to run out and for voters: two fit beside
# each other, each with a network of its own.
"${PYTEST[@]}" -o cache_dir=$CACHES/cluster -n 2 --dist loadfile -m "not long" tests/cluster_live || status[cluster]=$?

failed=0
for group in computes live alone cluster; do
    [ "${status[$group]}" = 0 ] && continue
    failures=("${PYTEST[@]}" -o cache_dir=$CACHES/$group --last-failed --last-failed-no-failures none)
    # 1 says that tests failed. Whatever else goes wrong gets no better by another try.
    if [ $AGAIN = yes ] && [ "${status[$group]}" = 1 ] && "${failures[@]}"; then
        continue
    fi
    echo "tests: group $group failed; once more what failed in it: ${failures[*]:2}" >&2
    failed=1
done
exit $failed
