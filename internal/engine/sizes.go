package engine

import (
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
)

// sizeTrust says what the st_size of a regular file is worth on a file system.
type sizeTrust uint8

const (
	sizeTrue sizeTrust = iota // the file has that many bytes
	sizeMost                  // so it has, unless it is said to have none
	sizeNone                  // it is a guess: made-up files have 0, 4,096 ... and any contents
)

// Magic numbers that the unix package lacks.
const (
	magicConfigfs = 0x62656570
	magicFusectl  = 0x65735543
	magicGFS2     = 0x01161970
	magicGPFS     = 0x47504653
	magicHFSPlus  = 0x482b
	magicJFS      = 0x3153464a
	magicLustre   = 0x0bd00bd0
	magicNFSD     = 0x6e667364
	magicNTFS3    = 0x7366746e
	magicUBIFS    = 0x24051905
	magicVxFS     = 0xa501fcf5
	magicZFS      = 0x2fc12fc1
)

// sizeTrustOf gives the trust in a type of file system. One that is not known may be
// like some on FUSE, which say 0 of what they would have to fetch or make up first.
func sizeTrustOf(fsType uint32) sizeTrust {
	switch fsType {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.RAMFS_MAGIC,
		unix.F2FS_SUPER_MAGIC, unix.BCACHEFS_SUPER_MAGIC, unix.NILFS_SUPER_MAGIC, unix.REISERFS_SUPER_MAGIC, unix.JFFS2_SUPER_MAGIC,
		unix.NFS_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC,
		unix.OCFS2_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC, unix.CODA_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, unix.ECRYPTFS_SUPER_MAGIC,
		unix.MSDOS_SUPER_MAGIC, unix.EXFAT_SUPER_MAGIC, unix.ISOFS_SUPER_MAGIC, unix.UDF_SUPER_MAGIC, unix.SQUASHFS_MAGIC,
		unix.EROFS_SUPER_MAGIC_V1, unix.CRAMFS_MAGIC, unix.HUGETLBFS_MAGIC, unix.ZONEFS_MAGIC,
		magicGFS2, magicGPFS, magicHFSPlus, magicJFS, magicLustre, magicNTFS3, magicUBIFS, magicVxFS, magicZFS:
		return sizeTrue
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC, unix.SMACK_MAGIC, unix.AAFS_MAGIC, unix.BINFMTFS_MAGIC, unix.BPF_FS_MAGIC,
		unix.RDTGROUP_SUPER_MAGIC, unix.XENFS_SUPER_MAGIC, unix.OPENPROM_SUPER_MAGIC, magicConfigfs, magicFusectl, magicNFSD:
		return sizeNone
	}
	return sizeMost
}

// lookAtSize notes whether the contents of the regular file behind src are what is
// read to its end, rather than the bytes that its size says, and whether they are made
// up as they are read. The file system is asked once.
func (j *Job) lookAtSize(t *target, src int, st *unix.Stat_t) {
	t.toEnd, t.madeUp = false, false
	if fsys.Type(st.Mode) != unix.S_IFREG {
		return
	}
	j.sizesMu.Lock()
	trust, known := j.sizes[st.Dev]
	j.sizesMu.Unlock()
	if !known {
		var sf unix.Statfs_t
		if unix.Fstatfs(src, &sf) != nil {
			return
		}
		trust = sizeTrustOf(uint32(sf.Type))
		j.sizesMu.Lock()
		j.sizes[st.Dev] = trust
		j.sizesMu.Unlock()
	}
	t.madeUp = trust == sizeNone
	t.toEnd = t.madeUp || trust == sizeMost && st.Size == 0
}
