package protocol

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// JobID identifies a job: a ULID in lower case, so that ids sort by time of
// submission and are safe as one token of a subject.
type JobID string

// ParseJobID checks that s can be a token of a subject.
func ParseJobID(s string) (JobID, error) {
	if err := CheckToken("job id", s); err != nil {
		return "", err
	}
	return JobID(s), nil
}

// CheckToken returns an error unless s is a non-empty token of a subject made of
// ASCII letters, digits, '-' and '_', at most 64 bytes long.
func CheckToken(what, s string) error {
	if s == "" || len(s) > 64 {
		return fault.New(fault.Invalid, "%s %q must have 1 to 64 characters", what, s)
	}
	for _, c := range []byte(s) {
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return fault.New(fault.Invalid, "%s %q may only have letters, digits, '-' and '_'", what, s)
		}
	}
	return nil
}

// Streams, buckets and consumers.
const (
	StreamShards   = "FSB_SHARDS"
	StreamResults  = "FSB_RESULTS"
	StreamFailures = "FSB_FAILURES"
	BucketJobs     = "FSB_JOBS"
	BucketLease    = "FSB_LEASE"
	BucketObjects  = "FSB_OBJECTS"
)

// ClassStandard is the one priority class of shard subjects. Queued shards
// never exceed the free slots, so an order among them would decide nothing:
// priority is given when credit is, before a shard is published.
const ClassStandard = "std"

// Subjects of core messages.
const (
	SubjectHeartbeat = "fsb.heartbeat" // request: Heartbeat -> HeartbeatReply
	SubjectAttempt   = "fsb.attempt"   // publish: AttemptEvent
	SubjectRoots     = "fsb.roots"     // request: RootsClaim -> RootsReply
	SubjectPoke      = "fsb.poke"      // publish: workers send a heartbeat at once
	SubjectAPI       = "fsb.api"       // prefix of the control API's endpoints
)

// Subject patterns that streams store.
const (
	SubjectsShards   = "fsb.shard.>"
	SubjectsCursors  = "fsb.cursor.>"
	SubjectsResults  = "fsb.result.>"
	SubjectsFailures = "fsb.failure.>"
)

// Headers of shard messages.
const (
	HeaderWire   = "Fsb-Wire"   // WireMajor of the sender
	HeaderObject = "Fsb-Object" // the payload is this object of BucketObjects
	HeaderPrior  = "Fsb-Prior"  // earlier messages of the shard: sequence.deliveries,...
	HeaderEvery  = "Fsb-Every"  // one shard in so many gets a span
	HeaderLeader = "Fsb-Leader" // entry.Leader of the shard that it needs, which is LeaderDone where there is none
)

// HeaderRoom is what a message's headers take of the payload limit, in bytes.
const HeaderRoom = 4 << 10

// PoolConsumer is the durable consumer of a pool's shards.
func PoolConsumer(class, pool string) string { return "fsb-" + class + "-" + pool }

// PoolFilter is the subject filter of that consumer.
func PoolFilter(class, pool string) string { return "fsb.shard." + class + "." + pool + ".>" }

// ShardSubject is where shard n of a job's phase is published.
func ShardSubject(class, pool string, job JobID, p Phase, n uint64) string {
	return fmt.Sprintf("fsb.shard.%s.%s.%s.%d.%d", class, pool, job, p, n)
}

// JobShards matches all shards of a job.
func JobShards(job JobID) string { return "fsb.shard.*.*." + string(job) + ".>" }

// PhaseShards matches the shards of one phase of a job.
func PhaseShards(class, pool string, job JobID, p Phase) string {
	return fmt.Sprintf("fsb.shard.%s.%s.%s.%d.>", class, pool, job, p)
}

// CursorSubject is where a job's cursor is.
func CursorSubject(job JobID) string { return "fsb.cursor." + string(job) }

// ResultSubject is where the result of shard n is.
func ResultSubject(job JobID, p Phase, n uint64) string {
	return fmt.Sprintf("fsb.result.%s.%d.%d", job, p, n)
}

// JobResults matches all results of a job.
func JobResults(job JobID) string { return "fsb.result." + string(job) + ".>" }

// FailureSubject is where the failures of one attempt are.
func FailureSubject(job JobID, p Phase, n, sequence uint64, delivery uint32) string {
	return fmt.Sprintf("fsb.failure.%s.%d.%d.%d-%d", job, p, n, sequence, delivery)
}

// JobFailures matches all failures of a job.
func JobFailures(job JobID) string { return "fsb.failure." + string(job) + ".>" }

// EventSubject is where a job's snapshots are published for those who watch.
func EventSubject(job JobID) string { return "fsb.event." + string(job) }

// Keys of BucketJobs.

// JobKey is the key of a job's record.
func JobKey(job JobID) string { return "job." + string(job) }

// JobFromKey is the inverse of JobKey.
func JobFromKey(key string) (JobID, bool) {
	s, ok := strings.CutPrefix(key, "job.")
	return JobID(s), ok
}

// FileKey is the key of the record of a job's i-th control file.
func FileKey(job JobID, i uint32) string { return fmt.Sprintf("file.%s.%d", job, i) }

// FileKeys matches the records of all control files of a job.
func FileKeys(job JobID) string { return "file." + string(job) + ".*" }

// CheckpointKey is the key of a job's folded results.
func CheckpointKey(job JobID) string { return "ckpt." + string(job) }

// JobFromCheckpointKey is the inverse of CheckpointKey.
func JobFromCheckpointKey(key string) (JobID, bool) {
	s, ok := strings.CutPrefix(key, "ckpt.")
	return JobID(s), ok
}

// Object names of BucketObjects.

// ShardObject is the object of a shard that exceeds the payload limit.
func ShardObject(job JobID, p Phase, n uint64) string {
	return fmt.Sprintf("shard/%s/%d/%d", job, p, n)
}

// FailureObject is the object of failures that exceed the payload limit.
func FailureObject(job JobID, p Phase, n, sequence uint64, delivery uint32) string {
	return fmt.Sprintf("failure/%s/%d/%d/%d-%d", job, p, n, sequence, delivery)
}

// JobOfObject is the job that an object belongs to: of a shard or of failures.
// Uploaded files belong to all jobs that name them.
func JobOfObject(name string) (JobID, bool) {
	f := strings.Split(name, "/")
	if len(f) < 2 || f[0] != "shard" && f[0] != "failure" {
		return "", false
	}
	return JobID(f[1]), true
}

// FileObject is the object of an uploaded control or meta file, by digest.
func FileObject(digest string) string { return "file/" + digest }

// ParseResultSubject is the inverse of ResultSubject.
func ParseResultSubject(s string) (JobID, Phase, uint64, bool) {
	f := strings.Split(s, ".")
	if len(f) != 5 || f[0] != "fsb" || f[1] != "result" {
		return "", 0, 0, false
	}
	p, err1 := strconv.ParseUint(f[3], 10, 8)
	n, err2 := strconv.ParseUint(f[4], 10, 64)
	id := JobID(f[2])
	// A number has one form, or a shard would have two subjects for its result.
	if err1 != nil || err2 != nil || id == "" || ResultSubject(id, Phase(p), n) != s {
		return "", 0, 0, false
	}
	return id, Phase(p), n, true
}
