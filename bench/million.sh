#!/usr/bin/env bash
# Compares runs over one tree of N small files with rsync -a in the same series: a first
# run into an empty destination, then ROUNDS times runs with nothing changed, with and
# without a look at the destination, and with 1 % of the files changed. Prints wall and
# CPU seconds and peak memory of each, and the medians of the ratios.
#
#   make build && bash bench/million.sh DIRECTORY [N] [ROUNDS]
#
# DIRECTORY must be empty and have room for three times the tree. Nothing is
# deleted during the series: creates after deletes are slow on ext4.
set -euo pipefail
dir=${1:?usage: million.sh DIRECTORY [N] [ROUNDS]}
n=${2:-1000000}
rounds=${3:-5}
bin=$(cd "$(dirname "$0")/../bin" && pwd)
command -v rsync >/dev/null || { echo "rsync is not installed"; exit 1; }
[ -x /usr/bin/time ] || { echo "/usr/bin/time is not installed"; exit 1; }
export XDG_STATE_HOME=$dir/state

echo "make $n files in $dir/src"
python3 - "$dir/src" "$n" <<'PY'
import os, sys
top, n = sys.argv[1], int(sys.argv[2])
data = b"0123456789abcdef" * 64
for d in range((n + 999) // 1000):
    path = f"{top}/{d // 100}/{d % 100}"
    os.makedirs(path)
    for i in range(min(1000, n - d * 1000)):
        with open(f"{path}/f{i}", "wb") as f:
            f.write(data[: 200 + (i * 7) % 800])
PY
sync
figures=$dir/figures
: >"$figures"
run() { # NAME TOOL COMMAND...
	local name=$1 tool=$2
	shift 2
	/usr/bin/time -f "%e %U %S %M" "$@" >/dev/null 2>"$dir/err" || { cat "$dir/err"; exit 1; }
	echo "$name $tool $(tail -n 1 "$dir/err")" | tee -a "$figures"
}
echo "run tool wall user sys peak(KiB)"
mkdir "$dir/ours" "$dir/theirs"
run first rsync rsync -a "$dir/src/" "$dir/theirs/"
run first fsbackup "$bin/fsbackup" backup -q "$dir/src" "$dir/ours"
for round in $(seq "$rounds"); do
	run same rsync rsync -a --delete "$dir/src/" "$dir/theirs/"
	run same fsbackup "$bin/fsbackup" backup -q "$dir/src" "$dir/ours"
	run same trusting "$bin/fsbackup" backup -q --trust-history "$dir/src" "$dir/ours"
	find "$dir/src" -name 'f*'"$round" | awk 'NR % 10 == 1' >"$dir/changed"
	xargs -a "$dir/changed" -d '\n' -n 1000 sh -c 'for f; do echo changed >> "$f"; done' sh
	echo "$(wc -l <"$dir/changed") files changed"
	run changed rsync rsync -a --delete "$dir/src/" "$dir/theirs/"
	run changed fsbackup "$bin/fsbackup" backup -q "$dir/src" "$dir/ours"
done
python3 - "$figures" <<'PY'
import statistics, sys
runs = {}
for line in open(sys.argv[1]):
    name, tool, wall, user, system, peak = line.split()
    runs.setdefault((name, tool), []).append((float(wall), float(user) + float(system), int(peak)))
for (name, tool), ours in runs.items():
    mid = [statistics.median(x) for x in zip(*ours)]
    text = f"{name} {tool}: {mid[0]:.2f} s wall, {mid[1]:.2f} s CPU, {mid[2] >> 10} MiB"
    if tool != "rsync":
        for i, what in enumerate(("wall", "CPU")):
            ratios = sorted(o[i] / r[i] for o, r in zip(ours, runs[name, "rsync"]))
            text += f"; {what} {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) of rsync"
    print(text)
PY
diff -rq "$dir/theirs" "$dir/ours" && echo "both copies are the same"
