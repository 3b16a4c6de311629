package entry

// Counts are the statistics of a batch of entries. Bytes are st_size of regular
// files.
//
// A new figure has its field here, its line in Add and its row in figures; a field
// of the row's number and name in the message of counts; and, if people are to see
// it, its sum in the statistics of a job. Tests find what is missing up to the message.
type Counts struct {
	DirsCopied, FilesCopied, BytesCopied uint64
	DirsFailed, FilesFailed              uint64
	Deleted                              uint64 // delete lines whose target is gone
	DirsDeleted                          uint64 // of these, lines of directories
	Links                                uint64 // group members, leaders excepted, that are right links
	Skipped                              uint64 // lines deliberately not done (source still has it, kept by policy, ...)
	ChangedWhileRead                     uint64
	ChangedSinceScan                     uint64
	DirsFinished, DirsTouched            uint64
	DirsVerified, FilesVerified          uint64 // compared, and what their source is; of copies, regular files only
	BytesVerified                        uint64 // of these, st_size of regular files
	DirsDiffer, FilesDiffer              uint64 // of DirsFailed and FilesFailed: compared, and not what their source is
	Extra                                uint64 // names in verified directories that the source does not have
	LinksCopied                          uint64 // of Links: copied, since the file system would not link
	DirsKept                             uint64 // of Skipped: delete lines of directories that are not empty
	ChangingTaken                        uint64 // of FilesCopied: they changed each time they were read
	HoleBytes, ReflinkBytes              uint64 // measurements, outside exactness
}

// Add adds o to c. It is written out, and not a loop over Figures, since the
// engine calls it for every few entries.
func (c *Counts) Add(o *Counts) {
	c.DirsCopied += o.DirsCopied
	c.FilesCopied += o.FilesCopied
	c.BytesCopied += o.BytesCopied
	c.DirsFailed += o.DirsFailed
	c.FilesFailed += o.FilesFailed
	c.Deleted += o.Deleted
	c.Links += o.Links
	c.Skipped += o.Skipped
	c.ChangedWhileRead += o.ChangedWhileRead
	c.ChangedSinceScan += o.ChangedSinceScan
	c.DirsFinished += o.DirsFinished
	c.DirsTouched += o.DirsTouched
	c.HoleBytes += o.HoleBytes
	c.ReflinkBytes += o.ReflinkBytes
	c.DirsDeleted += o.DirsDeleted
	c.DirsVerified += o.DirsVerified
	c.FilesVerified += o.FilesVerified
	c.BytesVerified += o.BytesVerified
	c.DirsDiffer += o.DirsDiffer
	c.FilesDiffer += o.FilesDiffer
	c.Extra += o.Extra
	c.LinksCopied += o.LinksCopied
	c.DirsKept += o.DirsKept
	c.ChangingTaken += o.ChangingTaken
}

// Figure is one of the counts. Number and Name are its field's in the wire
// message of counts.
type Figure struct {
	Number int
	Name   string
	Of     func(*Counts) *uint64
}

// figures are all counts. The numbers travel on the wire: append only.
var figures = [...]Figure{
	{1, "dirs_copied", func(c *Counts) *uint64 { return &c.DirsCopied }},
	{2, "files_copied", func(c *Counts) *uint64 { return &c.FilesCopied }},
	{3, "bytes_copied", func(c *Counts) *uint64 { return &c.BytesCopied }},
	{4, "dirs_failed", func(c *Counts) *uint64 { return &c.DirsFailed }},
	{5, "files_failed", func(c *Counts) *uint64 { return &c.FilesFailed }},
	{6, "deleted", func(c *Counts) *uint64 { return &c.Deleted }},
	{7, "links", func(c *Counts) *uint64 { return &c.Links }},
	{8, "skipped", func(c *Counts) *uint64 { return &c.Skipped }},
	{9, "changed_while_read", func(c *Counts) *uint64 { return &c.ChangedWhileRead }},
	{10, "changed_since_scan", func(c *Counts) *uint64 { return &c.ChangedSinceScan }},
	{11, "dirs_finished", func(c *Counts) *uint64 { return &c.DirsFinished }},
	{12, "dirs_touched", func(c *Counts) *uint64 { return &c.DirsTouched }},
	{13, "hole_bytes", func(c *Counts) *uint64 { return &c.HoleBytes }},
	{14, "reflink_bytes", func(c *Counts) *uint64 { return &c.ReflinkBytes }},
	{15, "dirs_deleted", func(c *Counts) *uint64 { return &c.DirsDeleted }},
	{16, "dirs_verified", func(c *Counts) *uint64 { return &c.DirsVerified }},
	{17, "files_verified", func(c *Counts) *uint64 { return &c.FilesVerified }},
	{18, "bytes_verified", func(c *Counts) *uint64 { return &c.BytesVerified }},
	{19, "dirs_differ", func(c *Counts) *uint64 { return &c.DirsDiffer }},
	{20, "files_differ", func(c *Counts) *uint64 { return &c.FilesDiffer }},
	{21, "extra", func(c *Counts) *uint64 { return &c.Extra }},
	{22, "links_copied", func(c *Counts) *uint64 { return &c.LinksCopied }},
	{23, "dirs_kept", func(c *Counts) *uint64 { return &c.DirsKept }},
	{24, "changing_taken", func(c *Counts) *uint64 { return &c.ChangingTaken }},
}

// Figures returns all counts by number, for code that treats them alike. The
// slice is the caller's.
func Figures() []Figure { return append([]Figure(nil), figures[:]...) }
