package bus

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// KV is a bucket of keys with revisions. Its methods may be called concurrently.
type KV struct {
	kv   jetstream.KeyValue
	name string
}

// KV binds to a bucket.
func (b *Bus) KV(ctx context.Context, bucket string) (*KV, error) {
	kv, err := b.js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, classify("open bucket", bucket, err)
	}
	return &KV{kv: kv, name: bucket}, nil
}

// Get returns a key's value and revision, or an error that wraps ErrNotFound.
func (k *KV) Get(ctx context.Context, key string) ([]byte, uint64, error) {
	e, err := k.kv.Get(ctx, key)
	if err != nil {
		return nil, 0, classify("get", key, err)
	}
	return e.Value(), e.Revision(), nil
}

// Swap writes a key if its revision is rev, 0 meaning that it does not exist.
// Where it is not, the error wraps ErrConflict.
func (k *KV) Swap(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	var err error
	if rev == 0 {
		rev, err = k.kv.Create(ctx, key, value)
	} else {
		rev, err = k.kv.Update(ctx, key, value, rev)
	}
	return rev, classify("write", key, err)
}

// Put writes a key whatever it holds.
func (k *KV) Put(ctx context.Context, key string, value []byte) error {
	_, err := k.kv.Put(ctx, key, value)
	return classify("write", key, err)
}

// Delete removes a key and its history.
func (k *KV) Delete(ctx context.Context, key string) error {
	return classify("delete", key, k.kv.Purge(ctx, key))
}

// DeleteAt removes a key if its revision is rev. Where it is not, the error wraps
// ErrConflict.
func (k *KV) DeleteAt(ctx context.Context, key string, rev uint64) error {
	if rev == 0 {
		return fault.New(fault.Internal, "delete %q: no revision was given", key)
	}
	return classify("delete", key, k.kv.Purge(ctx, key, jetstream.LastRevision(rev)))
}

// Each calls f with the keys that match filter and their values.
func (k *KV) Each(ctx context.Context, filter string, f func(key string, value []byte, rev uint64) error) error {
	w, err := k.kv.Watch(ctx, filter, jetstream.IgnoreDeletes())
	if err != nil {
		return classify("list", filter, err)
	}
	defer func() { _ = w.Stop() }() // a watcher that is gone with its connection needs no stop
	for {
		select {
		case e := <-w.Updates():
			if e == nil {
				return nil // all that there was
			}
			if err := f(e.Key(), e.Value(), e.Revision()); err != nil {
				return err
			}
		case <-ctx.Done():
			return classify("list", filter, context.Cause(ctx))
		}
	}
}

// Objects is the bucket of uploaded files and large messages.
type Objects struct {
	bus    *Bus
	bucket string
	os     jetstream.ObjectStore
	chunk  uint32 // of an object's bytes in one message
}

// largestChunk is what the client takes by default; smaller where the server's
// messages must be.
const largestChunk = 128 << 10

// Objects binds to an object bucket.
func (b *Bus) Objects(ctx context.Context, bucket string) (*Objects, error) {
	os, err := b.js.ObjectStore(ctx, bucket)
	if err != nil {
		return nil, classify("open object bucket", bucket, err)
	}
	return &Objects{bus: b, bucket: bucket, os: os, chunk: uint32(min(largestChunk, max(b.MaxPayload()/2, 1)))}, nil
}

// Put stores an object.
func (o *Objects) Put(ctx context.Context, name string, r io.Reader) error {
	_, err := o.os.Put(ctx, jetstream.ObjectMeta{Name: name, Opts: &jetstream.ObjectMetaOptions{ChunkSize: o.chunk}}, r)
	return classify("upload", name, err)
}

// PutBytes stores a small object.
func (o *Objects) PutBytes(ctx context.Context, name string, data []byte) error {
	return o.Put(ctx, name, bytes.NewReader(data))
}

// Has reports whether an object exists.
func (o *Objects) Has(ctx context.Context, name string) (bool, error) {
	_, err := o.os.GetInfo(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return false, nil
	}
	return err == nil, classify("look up object", name, err)
}

// Get copies an object to w. Its digest is checked on the way.
func (o *Objects) Get(ctx context.Context, name string, w io.Writer) error {
	r, err := o.os.Get(ctx, name)
	if err != nil {
		return classify("download", name, err)
	}
	defer func() { _ = r.Close() }() // reading to the end has told all errors
	_, err = io.Copy(w, r)
	return classify("download", name, err)
}

// GetBytes returns an object of at most limit bytes.
func (o *Objects) GetBytes(ctx context.Context, name string, limit int64) ([]byte, error) {
	var buf bytes.Buffer
	if err := o.Get(ctx, name, &limitWriter{w: &buf, left: limit}); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

type limitWriter struct {
	w    io.Writer
	left int64
}

func (l *limitWriter) Write(p []byte) (int, error) {
	if l.left -= int64(len(p)); l.left < 0 {
		return 0, errors.New("object is larger than allowed")
	}
	return l.w.Write(p) //nolint:wrapcheck // a buffer in memory never fails
}

// Delete removes an object; one that does not exist is no error.
func (o *Objects) Delete(ctx context.Context, name string) error {
	err := o.os.Delete(ctx, name)
	if err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return classify("delete object", name, err)
	}
	return o.forget(ctx, name)
}

// forget takes the marker away that Delete leaves, for ever, in the place of an
// object. The names are those of ADR-20 of NATS.
func (o *Objects) forget(ctx context.Context, name string) error {
	stream, subject := "OBJ_"+o.bucket, "$O."+o.bucket+".M."+base64.URLEncoding.EncodeToString([]byte(name))
	m, err := o.bus.Last(ctx, stream, subject)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var is struct {
		Deleted bool `json:"deleted"`
	}
	if err := rawjson.Unmarshal(m.Data, &is); err != nil {
		return &fault.Error{Kind: fault.Corrupt, Op: "read object", Path: name, Err: err}
	}
	if !is.Deleted {
		return nil // stored again meanwhile
	}
	return o.bus.Purge(ctx, stream, subject, m.Sequence)
}

// Object is what a bucket tells of an object.
type Object struct {
	Name   string
	Stored time.Time // by the server's clock
}

// List returns all objects.
func (o *Objects) List(ctx context.Context) ([]Object, error) {
	infos, err := o.os.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil, nil
	}
	if err != nil {
		return nil, classify("list object bucket", o.bucket, err)
	}
	out := make([]Object, 0, len(infos))
	for _, i := range infos {
		out = append(out, Object{i.Name, i.ModTime})
	}
	return out, nil
}
