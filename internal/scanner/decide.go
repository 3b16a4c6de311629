package scanner

// What becomes of an entry is decided here and nowhere else, from facts that the
// joiner gathers. Four streams have a say: the source (this scan), committed (what
// the destination is known to have), each pending scan (what a job that was not seen
// to its end may have written there since), and the destination itself, if it is
// listed. In all tables the first row that fits decides; y = yes, n = no, - = either.

// found are the facts of an entry that the source has.
type found struct {
	all   bool // everything is to be copied: a first run, or one that was asked to
	known bool // committed and each pending scan have it, with the same type, and not as gone
	fresh bool // no earlier scan has anything at its path
	sure  bool // what they have of it is the same, and none says that it may have failed
	same  bool // the source's record is the committed one
	isDir bool
	meta  bool // owner, mode or attributes differ from the committed
	data  bool // size, mtime, inode, device or being a link differs
	held  held // what the destination has in its place
}

// decide returns the mode of the entry's line; modeSame = no line.
//
//	all known fresh sure same isDir meta data
//	 y    -     -    -    -     -    -    -    modeBoth   copy
//	 n    n     n    -    -     -    -    -    modeNew    copy, and finish its directory again
//	 n    n     y    -    -     -    -    -    adopt      what may be there already
//	 n    y     -    n    -     -    -    -    modeBoth   copy: nobody knows what is there
//	 n    y     -    y    y     -    -    -    repair     unchanged, if the destination still has it
//	 n    y     -    y    n     y    -    -    modeMeta   a directory has nothing else
//	 n    y     -    y    n     n    y    y    modeBoth   copy
//	 n    y     -    y    n     n    y    n    modeMeta   metadata only; without the contents modeBoth
//	 n    y     -    y    n     n    n    -    modeData   changed; without data only ctime is another:
//	                                                     somebody may have put the mtime back
//
// What the destination has decides the rest:
//
//	         unseen    missing   right     touched   wrong     lacking
//	adopt    modeNew   modeNew   modeSame  modeMeta  modeBoth  modeMeta
//	repair   modeSame  modeNew   modeSame  modeMeta  modeBoth  modeSame
func (f found) decide() string {
	switch {
	case f.all:
		return modeBoth
	case !f.known && !f.fresh:
		return modeNew
	case !f.known:
		return [...]string{modeNew, modeNew, modeSame, modeMeta, modeBoth, modeMeta}[f.held]
	case !f.sure:
		return modeBoth
	case f.same:
		return [...]string{modeSame, modeNew, modeSame, modeMeta, modeBoth, modeSame}[f.held]
	case f.isDir:
		return modeMeta
	case f.meta && (f.data || f.held == heldMissing || f.held == heldWrong):
		return modeBoth
	case f.meta:
		return modeMeta
	default:
		return modeData
	}
}

// decideSuspect returns the mode of the line of an entry in a scan that is given its
// suspects: somebody has compared both sides, so nothing else has a say.
func decideSuspect(is bool) string {
	if is {
		return modeBoth
	}
	return modeSame
}

// unfound are the facts of an entry that only earlier scans have.
type unfound struct {
	root     bool // it is the root itself
	dirLives bool // the source has its directory
	dirFate  fate // else: what becomes of that
	unread   bool // it, or its directory, is there and could not be looked at
	keptAway bool // it is there, and the scan was told to leave it out (a mount, the destination)
	out      bool // a pattern, or a mount point above it, excludes it now
	purge    bool // what is excluded is to be deleted
}

// fate is what becomes of an entry that only earlier scans have.
type fate uint8

const (
	// gone: a delete line for each kind that the destination may have; the new
	// state has it as gone until the line is known to be executed.
	gone fate = iota
	// excluded: no line; the new state keeps it, so that it is deleted or compared
	// should it not be excluded any more.
	excluded
	// carried: no line; the new state has what the earlier ones had, dirty where
	// they do not agree.
	carried
)

// decide returns the entry's fate. What is below a directory that the source does
// not have shares its fate, but for what is excluded below one that is gone: that
// stays, and the directory with it.
//
//	root dirLives unread keptAway out purge
//	 y      -       -       -      -    -    carried    a root is never deleted
//	 n      n       -       -      y    n    excluded   if its directory is gone, else as that
//	 n      n       -       -      -    -    dirFate    as its directory
//	 n      y       y       -      -    -    carried    keep: it may well be there
//	 n      y       n       y      -    -    excluded   keep
//	 n      y       n       n      y    n    excluded   keep
//	 n      y       n       n      y    y    gone       delete
//	 n      y       n       n      n    -    gone       delete
func (f unfound) decide() fate {
	switch {
	case f.root:
		return carried
	case !f.dirLives && f.dirFate == gone && f.out && !f.purge:
		return excluded
	case !f.dirLives:
		return f.dirFate
	case f.unread:
		return carried
	case f.keptAway:
		return excluded
	case f.out && !f.purge:
		return excluded
	default:
		return gone
	}
}
