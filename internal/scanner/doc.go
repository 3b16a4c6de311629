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
// unless told otherwise, what is newly excluded. What
// is excluded below a directory that is gone stays, and that directory with it.
//
// What is gone is deleted by name, each known entry for itself and a directory after
// what is in it, so that nothing goes that nobody knew. Where a directory stands in
// the way of something else, its lines are written only if all that is in it is known
// and gone.
//
// # Comparison with the destination
//
// The destination may be listed beside the source. Its stream is sorted as the others
// are and joined with them. What earlier scans know to be unchanged is emitted all the
// same where the destination has lost or altered it, and what they do not know is left
// alone where the destination has it already. That somebody has touched a copy whose
// size and time are right shows in its change time: it is later than the end of the
// last job, or not the one that was seen there last.
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
// left out if an exclude matches it or the rules say so, and no include matches
// it; the order of excludes and includes does not matter. Rules are the lines of
// files, and ordered: of those that match, the last one decides, and one with "!"
// before it takes back what rules before it left out. What lies below a directory
// that is left out is not looked at, so nothing can bring it back: include the
// directory itself too.
//
// # What is left out otherwise
//
// A list of paths, a largest size and an earliest time limit what a scan is asked
// about. An entry that is left out for these is carried over, as one that could
// not be looked at: what earlier scans knew of it stays right, and a later scan
// without the limit compares it with that.
package scanner
