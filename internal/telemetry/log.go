package telemetry

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"go.opentelemetry.io/otel/trace"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// NewLogger returns a logger that writes to w in a format ("text", also "", or
// "json") from a level on ("debug", "info", also "", "warn", "error"). A record
// made with a context that carries a sampled span gets its trace_id and span_id.
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var min slog.Level
	if level != "" {
		if err := min.UnmarshalText([]byte(level)); err != nil {
			return nil, &fault.Error{
				Kind: fault.Invalid, Op: "set up logging",
				Err:  fmt.Errorf("unknown log level %q", level),
				Hint: "use debug, info, warn or error",
			}
		}
	}
	opts := &slog.HandlerOptions{Level: min}
	var h slog.Handler
	switch strings.ToLower(format) {
	case "", "text":
		h = slog.NewTextHandler(w, opts)
	case "json":
		opts.ReplaceAttr = keepBytes
		h = slog.NewJSONHandler(w, opts)
	default:
		return nil, &fault.Error{
			Kind: fault.Invalid, Op: "set up logging",
			Err:  fmt.Errorf("unknown log format %q", format),
			Hint: "use text or json",
		}
	}
	return slog.New(traceHandler{h}), nil
}

// keepBytes puts the bytes of a text beside it where it is not UTF-8, as rawjson does:
// JSON would change them, and it may be a path. A log of text quotes them itself.
func keepBytes(_ []string, a slog.Attr) slog.Attr {
	var text string
	switch v := a.Value.Any().(type) {
	case string:
		text = v
	case error:
		text = v.Error()
	case []string:
		return keepList(a.Key, v)
	default:
		return a
	}
	exact := rawjson.Exact(text)
	if exact == nil {
		return a
	}
	// A group without a name is not shown as one.
	return slog.Attr{Value: slog.GroupValue(slog.String(a.Key, rawjson.Readable(text)), slog.String(a.Key+"_bytes", base64.StdEncoding.EncodeToString(exact)))}
}

// keepList is keepBytes of a list.
func keepList(key string, list []string) slog.Attr {
	texts, exact, some := make([]string, len(list)), make([][]byte, len(list)), false
	for i, s := range list {
		texts[i], exact[i] = rawjson.Readable(s), rawjson.Exact(s)
		some = some || exact[i] != nil
	}
	if !some {
		return slog.Any(key, list)
	}
	return slog.Attr{Value: slog.GroupValue(slog.Any(key, texts), slog.Any(key+"_bytes", exact))}
}

// traceHandler adds the ids of the span in the context. Spans that are not
// sampled are left out: nobody could look them up.
type traceHandler struct{ next slog.Handler }

func (h traceHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h traceHandler) Handle(ctx context.Context, r slog.Record) error {
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() && sc.IsSampled() {
		r = r.Clone()
		r.AddAttrs(slog.String("trace_id", sc.TraceID().String()), slog.String("span_id", sc.SpanID().String()))
	}
	return h.next.Handle(ctx, r) //nolint:wrapcheck // a handler is transparent
}

func (h traceHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return traceHandler{h.next.WithAttrs(attrs)}
}

func (h traceHandler) WithGroup(name string) slog.Handler {
	return traceHandler{h.next.WithGroup(name)}
}
