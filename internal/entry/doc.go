// Package entry owns what an entry is: the operations, the metadata, the counts
// and the lexical rule of paths, for all packages that hand entries on.
//
// Operations and counts have numbers, which travel on the wire and lie in queues
// that outlive a version: append only, never used again. The package is a leaf
// without I/O and state; its functions are safe for concurrent use.
package entry
