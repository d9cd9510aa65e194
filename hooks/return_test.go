package hooks

import (
	"net"
	"os/exec"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// A namespace that outlives its sandbox is left as it was found, with its links
// down; and it can be a sandbox's again.
func TestReturnLeavesTheNamespaceAsItWas(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.plugIn("net1", 2)
	w.start("all")
	w.must(Return(w.inner, w.uplink))
	w.must(Return(w.inner, w.uplink)) // it may be called again
	s, err := openSide(w.inner)
	w.must(err)
	defer s.Close()
	for _, name := range []string{"eth0", "net1"} {
		l := s.byName(name)
		if l == nil {
			t.Fatalf("%s did not come back; there are %q", name, names(s.links))
		}
		if l.Attrs().Flags&net.FlagUp != 0 || l.Attrs().MTU != 1400 && l.Attrs().MTU != 1500 {
			t.Errorf("%s came back as %+v", name, l.Attrs())
		}
		addrs, err := s.AddrList(l, netlink.FAMILY_V4)
		w.must(err)
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			return a.IP.String() == map[string]string{"eth0": "172.31.1.5", "net1": "172.31.2.5"}[name]
		}) {
			t.Errorf("%s came back with the addresses %v", name, addrs)
		}
	}
	if len(s.links) != 3 {
		t.Errorf("the namespace has %q", names(s.links))
	}
	tables := w.tables()
	rules, err := s.RuleList(netlink.FAMILY_V4)
	w.must(err)
	if tables != 0 || slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Priority == steeringTable }) {
		t.Errorf("%d tables are left, and the rules %v", tables, rules)
	}
	w.must(Fence(w.inner))
	w.start("all")
}

func (w *world) tables() int {
	w.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(w.inner.Fd())))
	w.must(err)
	list, err := c.ListTables()
	w.must(err)
	return len(list)
}

// Whoever still lives in the namespace gets nothing back: the fence stays.
func TestReturnKeepsTheFenceWhileSomebodyLivesThere(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.start("all")
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	w.must(err)
	w.must(In(w.inner, cmd.Start))
	defer func() { in.Close(); cmd.Wait() }()
	w.must(Return(w.inner, w.uplink))
	w.must(fenced(w.inner))
	if got := w.ask(w.inner, "tcp", "203.0.113.9:80"); got != "refused" {
		t.Errorf("a process that was left in it: %s", got)
	}
}
