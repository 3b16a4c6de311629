// Package scanner owns the walk of a source tree: it turns a directory tree
// into control files, meta files and the sorted state of the scan.
//
// # Stages
//
// Several workers walk the tree and encode what they find into sort buffers of
// bounded size, which go to disk when they are full. The merge of these is the
// one ordered stream of records (Record): directories in the order of their
// paths, each followed by what it holds that is not a directory, in the order
// of the names. A single emitter reads the stream and writes copy and mtime
// control files, meta files and the state file; it passes entries with several
// links on to a second sort by inode, which comes out as hard-link groups. So
// the output depends on the tree and the configuration only, never on how many
// workers there were or which of them was faster.
//
// # Comparison with earlier scans
//
// The state of a scan is its ordered stream, written to a file. A scan joins its
// own stream with the committed state, which is what the destination is known to
// hold, and with pending ones, those of scans whose jobs have not been committed:
// they may have been executed in any part. All are sorted the same way, so one
// pass decides everything, and memory is one record of each.
//
// An entry is unchanged if the committed state has it, as it is in type, owner,
// mode, size, times, inode, links and attributes, and every pending one has it
// the same. It is gone if any of them has it and the source has not. What a scan
// could not look at is carried over as it was, and never taken for gone; so is,
// unless told otherwise, what is newly excluded. An entry whose directory is gone
// is gone, excluded or not.
//
// Nothing but the change time tells that data was changed and its time put back.
// Where owner, mode or attributes have changed since as well, the entry is taken
// for a change of metadata only: whoever executes it must compare the contents,
// or trust the time.
//
// The new state holds everything that is to be remembered: also what is gone,
// until Commit knows it deleted, and what must be emitted again. Each listed
// directory is in it twice: by its own record, which comes before all that is
// below it, and by a slot among the names of its parent. By these it is known
// where the siblings are whether a directory is new, gone or has become
// something else, and the delete lines of a directory stand together.
//
// A directory is emitted if it changed, or if names in it do, since it must then
// get its times again. Whether hard links change in it is only known after all
// else, so a directory with links and no other reason waits until then.
//
// # Patterns
//
// Excludes and includes are patterns of path components:
//
//   - any bytes of one component, also none
//     ?       one character of a component
//     [a-z]   one character of a set; [!a-z] or [^a-z] one outside it
//     **      as a whole component: any number of components, also none
//     \x      the character x itself
//
// A pattern with a slash at its end matches directories only. One with a slash
// at its beginning or within is matched against the whole path below the source;
// one without is matched against the last component, at any depth. An entry is
// left out if an exclude matches it and no include does; the order of patterns
// does not matter. What lies below a directory that is left out is not looked
// at, so an include cannot bring it back: include the directory itself too.
package scanner
