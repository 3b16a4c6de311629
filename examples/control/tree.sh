#!/bin/sh
# Makes the tree that the control files beside this script describe.
set -e
dir=${1:?usage: tree.sh DIRECTORY}
mkdir -p "$dir/docs" "$dir/photos"
printf 'hello\n' > "$dir/docs/readme.txt"
printf 'a,b\n' > "$dir/docs/comma,in name.txt"
printf 'picture\n' > "$dir/photos/one.jpg"
ln -f "$dir/photos/one.jpg" "$dir/photos/the same.jpg"
ln -sf docs/readme.txt "$dir/link"
touch -d '2026-01-02 03:04:05 UTC' "$dir"/docs/* "$dir"/photos/*
touch -h -d '2026-01-02 03:04:05 UTC' "$dir/link"
touch -d '2026-01-02 03:04:05 UTC' "$dir/docs" "$dir/photos" "$dir"
