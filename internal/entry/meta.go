package entry

// Meta is the record of an entry: what the scan saw. Times are seconds since
// the epoch, since the file formats have no more; sizes are bytes.
type Meta struct {
	Mode                       uint32 // full st_mode
	Nlink, UID, GID            uint32 // Nlink is 0 for directories: no record has it
	Inode, Size, Rdev          uint64
	Atime, Mtime, Ctime, Btime int64
	HasX                       bool   // the record is complete in ACLs and Xattrs
	AccessACL, DefaultACL      string // text form; "" = none
	Xattrs                     []Xattr
	Symlink                    string
	HasSymlink                 bool
	Sparse                     []Extent // ranges with data; nil = not known
}

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Extent is a range of a file that holds data, in bytes.
type Extent struct{ Offset, Length uint64 }
