package runtime

import (
	"fmt"
	"strings"
	"testing"
)

// Of a hosts file counts what names something outside of the container.
func TestParseHosts(t *testing.T) {
	const file = `127.0.0.1	localhost
::1	localhost ip6-localhost
fe00::	ip6-localnet
ff02::1	ip6-allnodes
172.17.0.1	host.docker.internal Gateway.Local # by --add-host
10.0.0.7
nonsense	db.local
169.254.169.254 metadata.local
fe80::1%eth0 zone.local
fd00::7	db.local
172.17.0.2	0123456789ab
10.0.0.9 .. not_a_host!
`
	want := "[{fe00:: [ip6-localnet]} {172.17.0.1 [host.docker.internal gateway.local]} {fd00::7 [db.local]}]"
	if got := fmt.Sprint(parseHosts(strings.NewReader(file), "0123456789ab")); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := parseHosts(strings.NewReader(strings.Repeat("10.0.0.1 a.local\n", 2*maxHosts)), ""); len(got) != maxHosts {
		t.Errorf("%d lines count", len(got))
	}
}

// FuzzParseHosts: whatever the file is, what it names is a name, and never the
// container itself nor loopback.
func FuzzParseHosts(f *testing.F) {
	f.Add("172.17.0.1 host.docker.internal\n", "self")
	f.Fuzz(func(t *testing.T, text, self string) {
		for _, h := range parseHosts(strings.NewReader(text), self) {
			if !h.Addr.IsValid() || h.Addr.IsLoopback() || len(h.Names) == 0 {
				t.Errorf("%q gives %v", text, h)
			}
			for _, name := range h.Names {
				if name == "" || strings.ContainsAny(name, " \t\n") {
					t.Errorf("%q gives the name %q", text, name)
				}
			}
		}
	})
}
