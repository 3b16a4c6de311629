package protocol

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// An envelope is 16 bytes, little-endian, and a payload:
//
//	magic "FSB1" | type u8 | flags u8 | reserved u16 | raw length u32 | CRC-32C of raw u32
//
// The payload is a protobuf message, compressed with zstd if flagZstd is set.
const (
	envelopeMagic = "FSB1"
	envelopeSize  = 16
	flagZstd      = 1

	// MaxRaw bounds the uncompressed size of one message. The largest is a shard
	// with one hard-link group of GroupCap members with names of 4 KiB.
	MaxRaw = 128 << 20
	// maxRatio bounds what a message can expand to; the encoder stores one
	// uncompressed where zstd would exceed it. An empty entry takes 2 bytes raw
	// and some 200 decoded, so with this 100 hostile bytes cost less than 1 MiB.
	// Real shards shrink to a tenth or a twentieth.
	maxRatio = 64
)

// Message types of envelopes.
const (
	TypeShard      uint8 = 1
	TypeResult     uint8 = 2
	TypeFailures   uint8 = 3
	TypeCheckpoint uint8 = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Coders are safe for concurrent use and cost about a megabyte each, so one of
// each kind serves the process.
var (
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithEncoderCRC(false))
		if err != nil {
			panic("protocol: zstd encoder options: " + err.Error())
		}
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(MaxRaw), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic("protocol: zstd decoder options: " + err.Error())
		}
		return d
	})
)

// Encode returns m in an envelope of type t. Text that is not valid UTF-8, such
// as a path in a reason, is sent with each bad byte replaced: no entry can make
// the message that reports it impossible.
func Encode(t uint8, m proto.Message) ([]byte, error) {
	raw, err := proto.Marshal(m)
	if err != nil {
		m = proto.Clone(m)
		validText(m.ProtoReflect())
		raw, err = proto.Marshal(m)
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "encode message type %d: %w", t, err)
	}
	if len(raw) > MaxRaw {
		return nil, fault.New(fault.Invalid, "message type %d has %d bytes, at most %d are possible", t, len(raw), MaxRaw)
	}
	out := make([]byte, envelopeSize, envelopeSize+len(raw)/2+64)
	copy(out, envelopeMagic)
	out[4] = t
	binary.LittleEndian.PutUint32(out[8:], uint32(len(raw)))
	binary.LittleEndian.PutUint32(out[12:], crc32.Checksum(raw, castagnoli))
	if len(raw) >= 256 {
		z := encoder().EncodeAll(raw, out)
		if n := len(z) - envelopeSize; n < len(raw) && len(raw) <= n*maxRatio {
			z[5] = flagZstd
			return z, nil
		}
		out = out[:envelopeSize]
	}
	return append(out, raw...), nil
}

// validText replaces what is not UTF-8 in all text of m.
func validText(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList() && fd.Kind() == protoreflect.MessageKind:
			for i := range v.List().Len() {
				validText(v.List().Get(i).Message())
			}
		case fd.IsList():
		case fd.Kind() == protoreflect.MessageKind:
			validText(v.Message())
		case fd.Kind() == protoreflect.StringKind:
			m.Set(fd, protoreflect.ValueOfString(strings.ToValidUTF8(v.String(), "\uFFFD")))
		}
		return true
	})
}

// Decode checks the envelope in b and decodes its message into m. Errors are
// fault.Corrupt, or fault.Invalid for a wrong type.
func Decode(b []byte, t uint8, m proto.Message) error {
	if len(b) < envelopeSize || string(b[:4]) != envelopeMagic {
		return fault.New(fault.Corrupt, "message of %d bytes has no FSB1 envelope", len(b))
	}
	if b[4] != t {
		return fault.New(fault.Invalid, "message is of type %d, expected %d", b[4], t)
	}
	payload := b[envelopeSize:]
	size := int64(binary.LittleEndian.Uint32(b[8:]))
	raw := payload
	if b[5]&flagZstd != 0 {
		if size > MaxRaw || size > int64(len(payload))*maxRatio {
			return fault.New(fault.Corrupt, "message of %d bytes claims %d uncompressed", len(b), size)
		}
		var err error
		raw, err = decodeZstd(payload, size)
		if err != nil {
			return err
		}
	}
	if int64(len(raw)) != size {
		return fault.New(fault.Corrupt, "message has %d bytes, its envelope says %d", len(raw), size)
	}
	if crc := crc32.Checksum(raw, castagnoli); crc != binary.LittleEndian.Uint32(b[12:]) {
		return fault.New(fault.Corrupt, "message checksum is %08x, its envelope says %08x", crc, binary.LittleEndian.Uint32(b[12:]))
	}
	if err := proto.Unmarshal(raw, m); err != nil {
		return fault.New(fault.Corrupt, "decode message type %d: %w", t, err)
	}
	return nil
}

// decodeZstd decompresses p, which must give exactly size bytes. The frame's own
// header is held against size first, since the decoder allocates what it says.
func decodeZstd(p []byte, size int64) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(p); err != nil {
		return nil, fault.New(fault.Corrupt, "zstd frame: %w", err)
	}
	if !h.HasFCS || int64(h.FrameContentSize) != size {
		return nil, fault.New(fault.Corrupt, "zstd frame says %d bytes, its envelope %d", h.FrameContentSize, size)
	}
	raw, err := decoder().DecodeAll(p, make([]byte, 0, size))
	if err != nil {
		return nil, fault.New(fault.Corrupt, "decompress message: %w", err)
	}
	return raw, nil
}

// EntryPath returns the path of an entry of s.
func EntryPath(s *ShardMsg, e *EntryMsg) []byte {
	var dir []byte
	if int(e.GetDir()) < len(s.GetDirs()) {
		dir = s.GetDirs()[e.GetDir()]
	}
	switch {
	case len(dir) == 0:
		return e.GetName()
	case len(e.GetName()) == 0:
		return dir
	}
	out := make([]byte, 0, len(dir)+1+len(e.GetName()))
	return append(append(append(out, dir...), '/'), e.GetName()...)
}
