#!/usr/bin/env bash
# Rolls a deployment out: makes it, tries it, gives it traffic step by step, and takes the traffic back when a call fails.
#
#   roll-out.sh ENDPOINT NAME FILE REQUEST
#
# NAME is the new deployment's name (green), FILE its YAML, REQUEST a body that must be answered. The deployment that has most
# of the traffic now (blue) is kept: deleting it is for another day. FAREBOX_URL and FAREBOX_API_KEY say where.
set -euo pipefail

endpoint=$1 new=$2 file=$3 request=$4
calls=${CALLS:-20} steps=${STEPS:-"10 50 100"}

old=$(farebox online-deployment list -e "$endpoint" --query "max_by(data, &traffic).name" -o tsv)
if [ "$old" = "$new" ]; then
  echo "$new has the traffic already; give the new deployment another name" >&2
  exit 2
fi

back() {
  echo "rolling back: $old has all the traffic again" >&2
  farebox online-endpoint update -n "$endpoint" --traffic "$old=100" -o json > /dev/null
}

call() { # arguments for invoke
  farebox online-endpoint invoke -n "$endpoint" -r "$request" "$@"
}

# A failure up to here touches no caller: the new deployment has no traffic.
if farebox online-deployment show -n "$new" -e "$endpoint" > /dev/null 2>&1; then
  farebox online-deployment update -n "$new" -e "$endpoint" -f "$file" -o json > /dev/null
else
  farebox online-deployment create -n "$new" -e "$endpoint" -f "$file" -o json > /dev/null
fi
call --deployment-name "$new" > /dev/null || { echo "$new does not answer $request" >&2; exit 1; }

trap back EXIT # whatever the reason: a call that fails, a cancelled job
for share in $steps; do
  farebox online-endpoint update -n "$endpoint" --traffic "$old=$((100 - share)) $new=$share" -o json > /dev/null
  for _ in $(seq "$calls"); do
    call > /dev/null
  done
  echo "$new has $share % of the traffic"
done
trap - EXIT
