package hooks

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Between create and start the engine's cable is in the namespace. Nothing
// passes over it, in either direction.
func TestFenceHoldsWhileTheCableIsInside(t *testing.T) {
	w := newWorld(t)
	w.gateway()
	w.plugIn("eth0", 1)
	w.serve(w.host, "tcp", "203.0.113.9:80", "host")
	w.serve(w.host, "tcp", "172.31.1.1:80", "host")
	w.serve(w.host, "tcp", "[fd31:1::1]:80", "host")
	w.serve(w.host, "udp", "203.0.113.9:80", "host")
	w.serve(w.inner, "tcp", "172.31.1.5:8080", "mine")
	cable := w.capture("h-eth0")

	for _, c := range []struct{ proto, addr, outcome string }{
		{"tcp", "203.0.113.9:80", "refused"},
		{"tcp", "172.31.1.1:80", "refused"},
		{"tcp", "[fd31:1::1]:80", "refused"},
		{"udp", "203.0.113.9:80", "not permitted"},
		{"udp", "[fd31:1::1]:80", "not permitted"},
	} {
		if got := w.ask(w.inner, c.proto, c.addr); got != c.outcome {
			t.Errorf("from inside, %s %s: %s; want: %s", c.proto, c.addr, got, c.outcome)
		}
	}
	w.in(w.host, func() error {
		if got := probe("tcp", "172.31.1.5:8080", 100*time.Millisecond); got != "silence" {
			t.Errorf("from outside: %s; want: silence", got)
		}
		return nil
	})
	// The uplink has no cable yet, so the last word is said past the fence.
	if leaked := cable.leaked(w.withoutFence(), "172.31.1.1:1"); len(leaked) > 0 {
		t.Errorf("frames left the sandbox: %q", leaked)
	}
}

// withoutFence flushes the inner namespace's rules and returns it.
func (w *world) withoutFence() *os.File {
	w.Helper()
	w.in(w.inner, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	})
	return w.inner
}

// A second fence is refused and the first one stays as it is.
func TestFenceIsPutUpOnce(t *testing.T) {
	w := newWorld(t)
	if err := Fence(w.inner); !errors.Is(err, ErrFenced) {
		t.Fatalf("the second fence: %v; want ErrFenced", err)
	}
	w.start("all")
}

// The host's own namespace is never fenced, sealed, plugged or unplugged.
func TestTheHostIsLeftAlone(t *testing.T) {
	needRoot(t)
	host, err := OpenNetns("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	other := mustNetns(t)
	for name, f := range map[string]func() error{
		"Fence":         func() error { return Fence(host) },
		"Seal":          func() error { return Seal(host, nil) },
		"Plug from it":  func() error { _, err := Plug(host, other, "all"); return err },
		"Plug into it":  func() error { _, err := Plug(other, host, "all"); return err },
		"Prune":         func() error { _, err := Prune(host); return err },
		"Unplug":        func() error { return Unplug(host) },
		"Unplug a copy": func() error { return Unplug(other) }, // not made by NewUplink
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), "it is") {
			t.Errorf("%s: %v; want a refusal", name, err)
		}
	}
}

// A kernel without IPv6 gets the IPv4 half, and IPv6 is dropped should it be
// there after all. The listeners are six all the same.
func TestFenceWithoutIPv6(t *testing.T) {
	needRoot(t)
	w := &world{TB: t, inner: mustNetns(t)}
	w.must(fence(w.inner, false))
	files, err := listen(w.inner, false)
	w.must(err)
	for i, f := range files {
		if f == nil {
			t.Fatalf("socket %d is missing", i)
		}
		defer f.Close()
	}
	l, err := net.FileListener(files[0])
	w.must(err)
	defer l.Close()
	go answer(l, "gateway")
	w.must(seal(w.inner, nil, false))
	w.serve(w.inner, "tcp", "[::1]:80", "mine")

	if got, want := w.ask(w.inner, "tcp", "203.0.113.9:80"), "gateway 203.0.113.9:80 from 198.18.0.2"; got != want {
		t.Errorf("IPv4: %s; want: %s", got, want)
	}
	w.in(w.inner, func() error {
		if got := probe("tcp", "[::1]:80", 100*time.Millisecond); got != "silence" {
			t.Errorf("IPv6: %s; want: silence", got)
		}
		return nil
	})
}

// Docker 20.10 turns IPv6 off on every interface after create. The listeners
// survive that, and Seal turns it on again where the gateway needs it.
func TestSealRepairsWhatAnEngineTurnedOff(t *testing.T) {
	w := newWorld(t)
	w.gateway()
	w.in(w.inner, func() error { return writeSysctl("ipv6/conf/all/disable_ipv6", "1") })
	w.in(w.inner, func() error { return writeSysctl("ipv6/conf/lo/disable_ipv6", "1") })
	w.plugIn4("eth0", "172.31.1.5/24")
	w.start("all")
	for _, addr := range []string{"203.0.113.9:80", "[2001:db8::9]:80"} {
		if got := w.ask(w.inner, "tcp", addr); !strings.HasPrefix(got, "gateway "+addr) {
			t.Errorf("%s: %s; want the gateway", addr, got)
		}
	}
}

// plugIn4 is an engine that knows IPv4 only and sets no routes.
func (w *world) plugIn4(name, addr string) {
	w.Helper()
	w.in(w.host, func() error {
		veth := netlink.NewVeth(netlink.NewLinkAttrs())
		veth.Name, veth.PeerName, veth.PeerNamespace = "h-"+name, name, netlink.NsFd(w.inner.Fd())
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	w.in(w.inner, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, address(addr)); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
}

// The sockets come in the order that the worker expects, bound and waiting.
func TestListenOpensSixSocketsInOrder(t *testing.T) {
	w := newWorld(t)
	w.in(w.inner, func() error { return writeSysctl("core/somaxconn", "128") })
	files, err := Listen(w.inner)
	w.must(err)
	for i, want := range []string{
		"tcp 198.18.0.1:15001", "tcp [fd6e:656d:6f::1]:15001",
		"udp 198.18.0.1:53", "udp [fd6e:656d:6f::1]:53",
		"tcp 198.18.0.1:53", "tcp [fd6e:656d:6f::1]:53",
	} {
		f := files[i]
		defer f.Close()
		if f.Name() != want {
			t.Errorf("socket %d is %s; want %s", i, f.Name(), want)
		}
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		w.must(err)
		if flags&unix.O_NONBLOCK == 0 {
			t.Errorf("%s blocks", want)
		}
		if flags, err = unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s would be inherited (%v)", want, err)
		}
	}
	w.in(w.inner, func() error {
		if got, err := readSysctl(unix.AT_FDCWD, "/proc/sys/net/core/somaxconn"); err != nil || got != "4096" {
			t.Errorf("somaxconn is %s (%v)", got, err)
		}
		return nil
	})
}

// What create waits for, without the making of the namespace itself.
func BenchmarkFence(b *testing.B) {
	needRoot(b)
	for b.Loop() {
		b.StopTimer()
		ns := mustNetns(b)
		b.StartTimer()
		if err := Fence(ns); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		ns.Close()
		b.StartTimer()
	}
}
