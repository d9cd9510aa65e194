package worker

import (
	"net/netip"
	"testing"

	"nemoclaw/egress/control"
)

// An address of the hosts file is dialed by a name that rules allow, if there
// is one; a rule for the address itself comes first.
func TestHosts(t *testing.T) {
	at := netip.MustParseAddr("172.17.0.1")
	h := newHosts([]control.Host{{Addr: at, Names: []string{"gateway.local", "model.local"}}, {Addr: netip.MustParseAddr("::ffff:10.0.0.7"), Names: []string{"db.local"}}})
	for _, c := range []struct{ dialed, allowed, meant string }{
		{"172.17.0.1", "", "gateway.local"},
		{"172.17.0.1", "model.local", "model.local"},
		{"172.17.0.1", "172.17.0.1", "172.17.0.1"},
		{"10.0.0.7", "db.local", "db.local"},
		{"10.0.0.8", "db.local", "10.0.0.8"},
	} {
		name := func(t target) string {
			if t.host != "" {
				return t.host
			}
			return t.addr.String()
		}
		got := h.meant(target{addr: netip.MustParseAddr(c.dialed), port: 80}, func(t target) bool { return name(t) == c.allowed })
		if name(got) != c.meant || got.port != 80 {
			t.Errorf("%s, where %q is allowed, means %s; want %s", c.dialed, c.allowed, name(got), c.meant)
		}
	}
	if got := h.addrs("model.local"); len(got) != 1 || got[0] != at {
		t.Errorf("model.local lies at %v", got)
	}
	var none *hosts
	if none.addrs("x") != nil || none.meant(target{addr: at}, nil).addr != at {
		t.Error("an empty file gives names")
	}
}
