package bus

import (
	neturl "net/url"
	"regexp"
	"strings"
)

// hidden stands where a secret was.
const hidden = "xxxxx"

// plainHost is a piece of a list of URLs in which nothing can be secret: a host,
// perhaps a port and a path.
var plainHost = regexp.MustCompile(`^(\[[0-9A-Fa-f:.%]+\]|[\w.-]+)(:\d*)?(/[\w./-]*)?$`)

// Redact returns a comma-separated list of URLs of NATS without passwords and
// tokens, for logs and errors. Of what is no URL it shows what cannot be a secret.
func Redact(urls string) string {
	list := strings.Split(urls, ",")
	for i, u := range list {
		list[i] = redactOne(u)
	}
	return strings.Join(list, ",")
}

func redactOne(u string) string {
	scheme, rest, ok := strings.Cut(u, "://")
	if !ok {
		scheme, rest = "", u
	} else {
		scheme += "://"
	}
	at := strings.LastIndexByte(rest, '@')
	host := strings.TrimSpace(rest[at+1:])
	if host != "" && !plainHost.MatchString(host) {
		host = hidden // what follows an @ may be half of a password that has one
	}
	if at < 0 {
		return scheme + host
	}
	// A user without a password is a token.
	user := ""
	if p, err := neturl.Parse("nats://" + rest); err == nil && p.User != nil {
		if _, has := p.User.Password(); has {
			user = p.User.Username() + ":"
		}
	}
	return scheme + user + hidden + "@" + host
}
