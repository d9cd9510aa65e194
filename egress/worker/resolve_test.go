package worker

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// nameserver answers from a zone in the text form of RFC 1035, and counts.
type nameserver struct {
	zone  []wire.RR
	rcode int
	cut   bool // over UDP
	asked atomic.Int64
	gate  chan struct{} // if not nil, answers wait for it
	gated uint16        // the type whose answers do; 0: all
}

func (n *nameserver) ServeDNS(w wire.ResponseWriter, q *wire.Msg) {
	n.asked.Add(1)
	if n.gate != nil && (n.gated == 0 || n.gated == q.Question[0].Qtype) {
		<-n.gate
	}
	m := new(wire.Msg)
	m.SetRcode(q, n.rcode)
	if _, udp := w.LocalAddr().(*net.UDPAddr); udp && n.cut {
		m.Truncated = true
	} else {
		// An alias stands before what it leads to, as recursive servers answer.
		name := strings.ToLower(q.Question[0].Name)
		for _, rr := range n.zone {
			if rr.Header().Name != name {
				continue
			}
			if c, ok := rr.(*wire.CNAME); ok {
				name = c.Target
			} else if rr.Header().Rrtype != q.Question[0].Qtype {
				continue
			}
			m.Answer = append(m.Answer, rr)
		}
	}
	w.WriteMsg(m)
}

// resolverOf returns a resolver that asks n, which listens on loopback.
func resolverOf(t *testing.T, n *nameserver, zone ...string) *resolver {
	t.Helper()
	for _, line := range zone {
		rr, err := wire.NewRR(line)
		check(t, err)
		n.zone = append(n.zone, rr)
	}
	u, l := samePort(t)
	port := u.LocalAddr().(*net.UDPAddr).Port
	for _, s := range []*wire.Server{{PacketConn: u, Handler: n}, {Listener: l, Handler: n}} {
		go s.ActivateAndServe()
	}
	t.Cleanup(func() { u.Close(); l.Close() })
	r := newResolver(t.Context(), []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	r.port = uint16(port)
	return r
}

// samePort listens on one port for UDP and TCP. The kernel picks it for UDP, and
// somebody may have it for TCP: then another is picked, while the first is held.
func samePort(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for {
		u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		check(t, err)
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: u.LocalAddr().(*net.UDPAddr).Port})
		if err == nil {
			return u, l
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
		defer u.Close()
	}
}

func TestLookup(t *testing.T) {
	for _, tc := range []struct {
		name   string
		server *nameserver
		zone   []string
		want   string // addresses, or what the error says
	}{
		{"both families", &nameserver{}, []string{"api.example. 60 A 93.184.216.34", "api.example. 60 AAAA 2606:2800::1"}, "[2606:2800::1 93.184.216.34]"},
		{"one family", &nameserver{}, []string{"api.example. 60 A 93.184.216.34"}, "[93.184.216.34]"},
		{"an alias", &nameserver{}, []string{"api.example. 60 CNAME cdn.example.", "cdn.example. 60 A 93.184.216.34"}, "[93.184.216.34]"},
		{"a circle", &nameserver{}, []string{"api.example. 60 CNAME api.example."}, "the name has no address"},
		{"an alias without an address", &nameserver{}, []string{"api.example. 60 CNAME cdn.example."}, "the name has no address"},
		{"over TCP", &nameserver{cut: true}, []string{"api.example. 60 A 93.184.216.34"}, "[93.184.216.34]"},
		{"no such name", &nameserver{rcode: wire.RcodeNameError}, nil, "the name has no address"},
		{"a fault", &nameserver{rcode: wire.RcodeServerFailure}, nil, "cannot resolve the name: nameserver 127.0.0.1: SERVFAIL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := resolverOf(t, tc.server, tc.zone...)
			addrs, err := r.lookup(t.Context(), "api.example")
			got := ""
			if err != nil {
				got = err.Error()
			} else {
				var texts []string
				for _, a := range addrs {
					texts = append(texts, a.String())
				}
				got = "[" + strings.Join(texts, " ") + "]"
			}
			if got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// A name server that is slow about IPv6 does not keep IPv4 waiting; what it says
// in the end is there for the next connection. IPv4 is waited for.
func TestSlowFamily(t *testing.T) {
	for _, slow := range []uint16{wire.TypeA, wire.TypeAAAA} {
		n := &nameserver{gate: make(chan struct{}), gated: slow}
		open := sync.OnceFunc(func() { close(n.gate) })
		if slow == wire.TypeA {
			time.AfterFunc(2*familyTime, open)
		}
		r := resolverOf(t, n, "api.example. 60 A 93.184.216.34", "api.example. 60 AAAA 2606:2800::1")
		addrs, err := r.lookup(t.Context(), "api.example")
		if err != nil || !addrs[len(addrs)-1].Is4() || len(addrs) != 1 && slow == wire.TypeAAAA {
			t.Errorf("while %s is slow: %v, %v", wire.TypeToString[slow], addrs, err)
		}
		open()
		for deadline := time.Now().Add(patience); ; goruntime.Gosched() {
			if addrs, _ := r.lookup(t.Context(), "api.example"); len(addrs) == 2 && addrs[0].Is6() {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the second answer is not remembered")
			}
		}
	}
}

// A name server that fails is asked once; the others are begun with from then on.
func TestFailingServer(t *testing.T) {
	good, bad := &nameserver{}, &nameserver{rcode: wire.RcodeServerFailure}
	r := resolverOf(t, good, "a.example. 60 A 93.184.216.34", "b.example. 60 A 93.184.216.35")
	c, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.2:%d", r.port))
	check(t, err)
	go (&wire.Server{PacketConn: c, Handler: bad}).ActivateAndServe()
	t.Cleanup(func() { c.Close() })
	r.servers = []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}
	_, err = r.lookup(t.Context(), "a.example")
	check(t, err)
	first := bad.asked.Load()
	_, err = r.lookup(t.Context(), "b.example")
	check(t, err)
	if now := bad.asked.Load(); first == 0 || now != first {
		t.Errorf("it was asked %d times for the first name, %d for both", first, now)
	}
}

// Answers are kept for as long as they say, within bounds, and asked for once
// however many want them.
func TestAnswersAreKept(t *testing.T) {
	for ttl, want := range map[string]time.Duration{"0": minTTL, "60": 60 * time.Second, "86400": maxTTL} {
		n := &nameserver{gate: make(chan struct{})}
		r := resolverOf(t, n, "api.example. "+ttl+" A 93.184.216.34")
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := r.lookup(t.Context(), "api.example"); err != nil {
					t.Error(err)
				}
			})
		}
		close(n.gate)
		wg.Wait()
		if _, err := r.lookup(t.Context(), "api.example"); err != nil {
			t.Error(err)
		}
		if asked := n.asked.Load(); asked > 4 { // A and AAAA; a late caller may ask again within a TTL of 0
			t.Errorf("%d questions were asked", asked)
		}
		until := time.Until(r.known["api.example"].until)
		if until > want || until < want-patience {
			t.Errorf("with a TTL of %s the answer is kept %s, want %s", ttl, until, want)
		}
	}
}

// What is remembered does not grow without end.
func TestMemoryOfNamesIsBounded(t *testing.T) {
	r := newResolver(t.Context(), nil)
	for i := range 2 * maxNames {
		r.remember(strings.Repeat("x", i%60+1)+".n"+string(rune('a'+i%26))+"."+time.Duration(i).String(), answer{until: time.Now().Add(time.Hour)})
	}
	if len(r.known) > maxNames {
		t.Errorf("%d names are remembered", len(r.known))
	}
}

// Records of other types are those of the name, or of what it is an alias of.
func TestBeyondAddresses(t *testing.T) {
	n := &nameserver{}
	r := resolverOf(t, n,
		`alias.example. 60 CNAME api.example.`, `circle.example. 60 CNAME circle.example.`,
		`api.example. 60 TXT "v=1"`, `api.example. 60 MX 10 mx.example.`)
	for _, tc := range []struct {
		host  string
		qtype uint16
		rcode int
		want  string
	}{
		{"api.example", wire.TypeTXT, wire.RcodeSuccess, "TXT"},
		{"alias.example", wire.TypeTXT, wire.RcodeSuccess, "TXT"},
		{"api.example", wire.TypeSRV, wire.RcodeSuccess, ""},
		{"circle.example", wire.TypeTXT, wire.RcodeSuccess, ""},
		{"none.example", wire.TypeTXT, wire.RcodeNameError, ""},
		{"broken.example", wire.TypeTXT, wire.RcodeServerFailure, ""},
	} {
		n.rcode = tc.rcode
		found, err := r.beyond(tc.host, tc.qtype)
		got := ""
		for _, rr := range found.Records {
			got += wire.TypeToString[rr.Header().Rrtype]
		}
		if got != tc.want || found.Rcode != tc.rcode || (err != nil) != (tc.rcode == wire.RcodeServerFailure) {
			t.Errorf("%s: %q, %s, %v; want %q, %s", tc.host, got, wire.RcodeToString[found.Rcode], err, tc.want, wire.RcodeToString[tc.rcode])
		}
	}
}
