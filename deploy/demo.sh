#!/usr/bin/env bash
# Brings the cluster of compose.yaml up from a clean clone, backs a small tree up
# on it, compares source and destination, and takes everything down again.
#
# Needs Docker with docker-compose or the compose plug-in, Go, and no registry.
#   KEEP=1 deploy/demo.sh   leaves the cluster and its directory
set -euo pipefail
cd "$(dirname "$0")/.."

project=fsbackup-demo
export FSBACKUP_IMAGE=${FSBACKUP_IMAGE:-fsbackup:demo}
export FSBACKUP_NATS_PORT=${FSBACKUP_NATS_PORT:-14222}
export FSBACKUP_HTTP_PORT=${FSBACKUP_HTTP_PORT:-18080}
nats=nats://nats:4222

say() { printf '\n== %s\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

docker info >/dev/null 2>&1 || die "the Docker daemon does not answer: start it, or join the group docker"
if command -v docker-compose >/dev/null 2>&1; then
	compose=(docker-compose)
elif docker compose version >/dev/null 2>&1; then
	compose=(docker compose)
else
	die "neither docker-compose nor the compose plug-in of docker is installed"
fi
compose+=(-p "$project" -f deploy/compose.yaml)
# Nothing here takes minutes: what does, hangs.
dc() { timeout --foreground "${LIMIT:-300}" "${compose[@]}" "$@"; }
cli() { dc run --rm -T fsbackup "$@"; }

dir=$(mktemp -d "${TMPDIR:-/tmp}/fsbackup-demo.XXXXXX")
export FSBACKUP_SOURCE=$dir/source FSBACKUP_DESTINATION=$dir/destination FSBACKUP_CONTROL=$dir/control
mkdir "$FSBACKUP_SOURCE" "$FSBACKUP_DESTINATION" "$FSBACKUP_CONTROL"

finish() {
	code=$?
	trap - EXIT
	if [ "$code" -ne 0 ]; then
		say "it failed with $code; the last words of each part"
		dc ps || true
		dc logs --tail=40 || true
	fi
	if [ -n "${KEEP:-}" ]; then
		say "kept: project $project, $dir"
	else
		say "take it down"
		dc down --volumes --timeout 20 >/dev/null 2>&1 || true
		chmod -R u+rwX "$dir" 2>/dev/null || true
		rm -rf "$dir" || echo "demo: remove $dir yourself: it holds files of another user"
	fi
	exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "build the image $FSBACKUP_IMAGE on this machine"
make image IMAGE="$FSBACKUP_IMAGE"

say "make a source tree"
(
	cd "$FSBACKUP_SOURCE"
	mkdir -p docs/deep/er empty 'names with, commas'
	for i in $(seq 1 300); do
		d=data/$((i % 7))
		mkdir -p "$d"
		head -c $((i * 37)) /dev/urandom >"$d/file-$i"
	done
	head -c 3000000 /dev/urandom >docs/large
	truncate -s 20M docs/sparse && printf x | dd of=docs/sparse bs=1 seek=10M conv=notrunc status=none
	printf 'a\n' >$'names with, commas/new\nline'
	ln -s ../docs/large data/link
	ln -s nowhere data/dangling
	ln docs/large docs/deep/hard-1
	ln docs/large docs/deep/er/hard-2
	mkfifo data/fifo
	chmod 4755 data/1/file-1
	chmod 1777 empty
	touch -d '1969-07-20 20:17:40.123456789 UTC' docs/deep
	touch -d '2038-01-19 03:14:08.987654321 UTC' data/2/file-2
)

say "start NATS, the coordinator and two workers"
dc down --volumes >/dev/null 2>&1 || true
dc up -d nats coordinator worker-1 worker-2
workers=
for _ in $(seq 1 60); do
	workers=$(cli workers --nats "$nats" 2>/dev/null || true)
	grep -q worker-1 <<<"$workers" && grep -q worker-2 <<<"$workers" && break
	sleep 1
done
printf '%s\n' "$workers"
grep -q worker-1 <<<"$workers" && grep -q worker-2 <<<"$workers" || die "the two workers did not join within a minute"

say "scan the source"
cli scan /data/source --out /data/control

say "submit the job and watch it"
# Where the scan puts its control files and their metadata is one directory; the
# job searches it for the four kinds.
submitted=$(cli submit --nats "$nats" --source /data/source --destination /data/destination \
	--meta /data/control --control /data/control --json)
job=$(sed -n 's/.*"job"[[:space:]]*:[[:space:]]*"\([^"]*\)".*/\1/p' <<<"$submitted")
[ -n "$job" ] || die "submit printed no job: $submitted"
echo "job $job"
code=0
cli watch "$job" --nats "$nats" || code=$?
cli status "$job" --nats "$nats" || true
[ "$code" -eq 0 ] || { cli failures "$job" --nats "$nats" || true; die "the job ended with exit code $code"; }

say "compare"
listing() {
	(
		cd "$1"
		find . -mindepth 1 ! -type d -printf '%P %y %m %U %G %T@ %l %s %n\0'
		find . -mindepth 1 -type d -printf '%P %y %m %U %G %T@\0'
	) | sort -z | tr '\0' '\n'
}
diff -r --no-dereference -x fifo "$FSBACKUP_SOURCE" "$FSBACKUP_DESTINATION"
diff <(listing "$FSBACKUP_SOURCE") <(listing "$FSBACKUP_DESTINATION")
[ "$(stat -c %b "$FSBACKUP_DESTINATION/docs/sparse")" -lt 20000 ] || die "the sparse file was filled"
echo "identical: $(listing "$FSBACKUP_SOURCE" | wc -l) lines of listing, contents and times"
echo "1 passed, 0 failed"
