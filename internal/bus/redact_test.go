package bus

import (
	"strings"
	"testing"
)

func TestRedactedURLsHaveNoSecrets(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                      "",
		"nats://127.0.0.1:4222":                 "nats://127.0.0.1:4222",
		"tls://[::1]:4222":                      "tls://[::1]:4222",
		"h1, h2:4222,nats://h3":                 "h1,h2:4222,nats://h3",
		"ws://h/path/to":                        "ws://h/path/to",
		"nats://u:secret@h:4222":                "nats://u:xxxxx@h:4222",
		"u:secret@h":                            "u:xxxxx@h",
		"nats://secret@h":                       "nats://xxxxx@h",
		"nats://u:secret@h1,nats://u:secret@h2": "nats://u:xxxxx@h1,nats://u:xxxxx@h2",
		"h1,u:secret@h2,h3:1":                   "h1,u:xxxxx@h2,h3:1",
		"nats://u:a@secret@h":                   "nats://u:xxxxx@h",
		"nats://u:secret,secret@h":              "nats://xxxxx,xxxxx@h",
		"nats://u:secret/a@h":                   "nats://xxxxx@h",
		"nats://u:secret%zz@h":                  "nats://xxxxx@h",
		"nats://u:secret@h:port":                "nats://xxxxx@xxxxx",
		"nats://u:x@secret/a?b":                 "nats://u:xxxxx@xxxxx",
		"nats://u:secret":                       "nats://xxxxx",
		"nats://h?token=secret":                 "nats://xxxxx",
	} {
		if got := Redact(in); got != want || strings.Contains(got, "secret") {
			t.Errorf("%s becomes %s, want %s", in, got, want)
		}
	}
}
