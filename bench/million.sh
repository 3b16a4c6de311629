#!/usr/bin/env bash
# Compares incremental backups with rsync -a on one tree of N small files: a first
# run into an empty destination, then ROUNDS times a run with nothing changed and
# one with 1 % of the files changed. Prints wall and CPU seconds and peak memory.
#
#   make build && bash bench/million.sh DIRECTORY [N] [ROUNDS]
#
# DIRECTORY must be empty and have room for three times the tree. Nothing is
# deleted during the series: creates after deletes are slow on ext4.
set -euo pipefail
dir=${1:?usage: million.sh DIRECTORY [N] [ROUNDS]}
n=${2:-1000000}
rounds=${3:-3}
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
run() { # NAME COMMAND...
	local name=$1
	shift
	/usr/bin/time -f "$name: %e s wall, %U + %S s CPU, %M KiB" "$@" >/dev/null 2>"$dir/err" || { cat "$dir/err"; exit 1; }
	tail -n 1 "$dir/err"
}
mkdir "$dir/ours" "$dir/theirs"
run "first run,   rsync -a" rsync -a "$dir/src/" "$dir/theirs/"
run "first run,   fsbackup" "$bin/fsbackup" backup -q "$dir/src" "$dir/ours"
for round in $(seq "$rounds"); do
	run "no change,   rsync -a" rsync -a --delete "$dir/src/" "$dir/theirs/"
	run "no change,   fsbackup" "$bin/fsbackup" backup -q -i "$dir/src" "$dir/ours"
	find "$dir/src" -name 'f*'"$round" | awk 'NR % 10 == 1' >"$dir/changed"
	xargs -a "$dir/changed" -d '\n' -n 1000 sh -c 'for f; do echo changed >> "$f"; done' sh
	echo "$(wc -l <"$dir/changed") files changed"
	run "1 %% changed, rsync -a" rsync -a --delete "$dir/src/" "$dir/theirs/"
	run "1 %% changed, fsbackup" "$bin/fsbackup" backup -q -i "$dir/src" "$dir/ours"
done
diff -rq "$dir/theirs" "$dir/ours" && echo "both copies are the same"
