package worker

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"nemoclaw/specs/policy"
)

// Every kind of address that must not be reached, or only where a rule says so.
func TestClassify(t *testing.T) {
	for _, tc := range []struct {
		addr string
		want class
	}{
		{"93.184.216.34", global},
		{"2606:2800:220:1::1", global},
		{"9.255.255.255", global},
		{"11.0.0.0", global},
		{"100.63.255.255", global},
		{"172.32.0.0", global},
		{"198.20.0.0", global},

		{"10.0.0.1", private},
		{"100.64.0.1", private},
		{"172.31.255.255", private},
		{"192.168.0.1", private},
		{"192.0.0.8", private},
		{"192.0.2.1", private},
		{"192.88.99.1", private},
		{"198.19.255.255", private},
		{"198.51.100.1", private},
		{"203.0.113.1", private},
		{"240.0.0.1", private},
		{"fc00::1", private},
		{"fd12:3456::1", private},
		{"fec0::1", private},
		{"2001:db8::1", private},
		{"2001:2::1", private},
		{"3fff::1", private},
		{"5f00::1", private},
		{"100::1", private},
		{"64:ff9b::93.184.216.34", private},
		{"2002:5db8:d822::1", private},
		{"2001:0:5db8:d822:0:ffff:a247:27dd", private}, // Teredo for 93.184.216.34, twice

		{"0.0.0.0", never},
		{"0.1.2.3", never},
		{"127.0.0.1", never},
		{"127.255.255.254", never},
		{"169.254.169.254", never},
		{"169.254.0.1", never},
		{"168.63.129.16", never},
		{"100.100.100.200", never},
		{"192.0.0.192", never},
		{"198.18.0.1", never},
		{"224.0.0.1", never},
		{"239.255.255.255", never},
		{"255.255.255.255", never},
		{"::", never},
		{"::1", never},
		{"::127.0.0.1", never},
		{"::93.184.216.34", never},
		{"::ffff:93.184.216.34", never},
		{"::ffff:127.0.0.1", never},
		{"fe80::1", never},
		{"fe80::1%eth0", never},
		{"ff02::1", never},
		{"fd00:ec2::254", never},
		{"fd20:ce::254", never},
		{"fd6e:656d:6f::1", never},
		{"64:ff9b::127.0.0.1", never},
		{"64:ff9b::169.254.169.254", never},
		{"64:ff9b:1:a9fe:a9:fe00::", never},
		{"2002:7f00:1::1", never},
		{"2002:a9fe:a9fe::1", never},
		{"2001:0:7f00:1::1", never},                    // a Teredo server on loopback
		{"2001:0:5db8:d822:0:ffff:80ff:fffe", never},   // a Teredo client on loopback
		{"2606:2800::5efe:127.0.0.1", never},           // ISATAP
		{"2606:2800::200:5efe:169.254.169.254", never}, // ISATAP
	} {
		if got := classify(netip.MustParseAddr(tc.addr)); got != tc.want {
			t.Errorf("%s is of class %d, want %d", tc.addr, got, tc.want)
		}
	}
}

// FuzzClassify holds the classifier against net/netip: what the standard
// library knows not to be global, we do not call global.
func FuzzClassify(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "127.0.0.1", "fe80::1", "::ffff:10.0.0.1", "2002:7f00:1::1"} {
		f.Add(netip.MustParseAddr(s).AsSlice())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		c, plain := classify(a), a.Unmap()
		if c == global && (!plain.IsGlobalUnicast() || plain.IsPrivate() || a.Is4In6()) {
			t.Errorf("%s is called global", a)
		}
		if c != never && (plain.IsLoopback() || plain.IsLinkLocalUnicast() || plain.IsMulticast() || plain.IsUnspecified()) {
			t.Errorf("%s is not called never", a)
		}
	})
}

// The guard adds what only it can know: the namespace's own addresses, and
// those that the setup forbids. Without the list of the former nothing passes.
func TestGuard(t *testing.T) {
	g := newGuard([]netip.Prefix{netip.MustParsePrefix("93.184.0.0/16")})
	g.list = func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.IPv4(10, 0, 0, 5), Mask: net.CIDRMask(24, 32)}, &net.IPNet{IP: net.ParseIP("2606:2800::5"), Mask: net.CIDRMask(64, 128)}}, nil
	}
	ten := func(a netip.Addr) bool { return netip.MustParsePrefix("10.0.0.0/8").Contains(a) }
	for addr, want := range map[string]policy.Reason{
		"8.8.8.8":       "",
		"10.0.0.6":      "",
		"10.0.0.5":      policy.Forbidden,
		"2606:2800::5":  policy.Forbidden,
		"2606:2800::6":  "",
		"192.168.0.1":   policy.Private,
		"93.184.216.34": policy.Forbidden,
		"127.0.0.1":     policy.Forbidden,
	} {
		if got, err := g.judge(netip.MustParseAddr(addr), ten); got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", addr, got, err, want)
		}
	}
	g.list = func() ([]net.Addr, error) { return nil, errors.New("no netlink") }
	g.refresh()
	if got, err := g.judge(netip.MustParseAddr("8.8.8.8"), ten); got != policy.Forbidden || err == nil {
		t.Errorf("without a list: %q, %v", got, err)
	}
}

// The dialer's last word holds also where nobody asked before.
func TestLastWord(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	d := newGuard(nil).dialer()
	if c, err := d.DialContext(t.Context(), "tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("a dial that nothing allows reached loopback")
	}
	inForce := func() verdict { return verdict{allow: true, rules: &rules{policy: new(policy.Policy)}} }
	ctx := context.WithValue(t.Context(), allowance{}, inForce)
	if c, err := d.DialContext(ctx, "tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("an allowed dial reached loopback")
	}
}
