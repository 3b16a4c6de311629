// Package controlfile owns the text and binary files that a scan leaves behind:
// it reads copy, delete, hardlink and mtime control files and the meta and
// xmeta files that they refer to, and writes the newest family of each.
//
// Everything is streamed. A logical line is at most MaxLine bytes, a record of
// a meta file is read when it is asked for, and no count found in a file is
// ever believed before the bytes that it announces have been seen.
//
// # What is accepted
//
// Copy control files 1.0 and 2.0, delete control files 1.0, hardlink control files
// with 9 and 10 columns, mtime control files with 10 and 11, coded files of each kind
// (copy 2.1, others 1.1, see NeedsCode), meta files with named records (72 and 88 or 160 bytes before the name) and with
// fixed records (96 and 120 bytes) that have an xmeta record beside them. The
// title and the version decide, never a file's name or its neighbours.
//
// # Entries that cannot be read
//
// Next returns them as entries of type TypeBad with the reason, so that each
// one can be counted as a failure; Check, the admission of a file, refuses the
// whole file where its header is unusable or its counts cannot be explained by
// the entries found. See Check for the exact rule.
package controlfile
