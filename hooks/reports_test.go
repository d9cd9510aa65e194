package hooks

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// What the fence refuses of a program's packets is reported, at once and each by
// itself, with where it was to go; and nothing else is: not what is steered to
// the gateway or stays inside, nor what the kernel says by itself on a link that
// comes up.
func TestRefusedPacketsAreReported(t *testing.T) {
	w := newWorld(t)
	files, err := Listen(w.inner)
	if err != nil {
		t.Fatal(err)
	}
	reports := files[len(listeners)]
	for _, f := range files {
		t.Cleanup(func() { f.Close() })
	}
	w.plugIn("eth0", 1)
	w.start("all")
	w.serve(w.inner, "udp", "172.31.1.5:8083", "mine")
	if got := reported(t, int(reports.Fd())); len(got) > 0 {
		t.Errorf("before a program sent anything there are %d reports: %x", len(got), got)
	}
	for _, c := range []struct {
		proto, addr string
		to          string // as reported; empty: not
	}{
		{"udp", "203.0.113.9:80", "203.0.113.9:80"},
		{"udp", "198.18.3.7:443", "198.18.3.7:443"},
		{"udp", "172.31.1.1:123", "172.31.1.1:123"},
		{"udp", "[2001:db8::9]:443", "[2001:db8::9]:443"},
		{"udp", "127.0.0.11:40000", "127.0.0.11:40000"},
		{"tcp", "127.0.0.11:40000", "127.0.0.11:40000"},
		{"ip4:icmp", "8.8.8.8", "8.8.8.8:0"},
		{"ip6:ipv6-icmp", "2001:db8::9", "[2001:db8::9]:0"},
		{"udp", "172.31.1.5:8083", ""},
		{"udp", "172.31.1.5:9", ""},
		{"udp", "127.0.0.1:9", ""},
	} {
		w.ask(w.inner, c.proto, c.addr)
		got := reported(t, int(reports.Fd()))
		if c.to == "" {
			if len(got) > 0 {
				t.Errorf("%s %s, which stays inside, is reported: %x", c.proto, c.addr, got)
			}
			continue
		}
		to := netip.MustParseAddrPort(c.to)
		want := to.Addr().AsSlice()
		if len(got) == 0 || !bytes.Contains(got[0], want) {
			t.Errorf("%s %s: the reports are %x, want one with %x", c.proto, c.addr, got, want)
		}
	}
}

// reported is what waits in the socket of the kernel's reports.
func reported(t *testing.T, fd int) (list [][]byte) {
	t.Helper()
	for {
		b := make([]byte, 4096)
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, b[:n])
	}
}
