package dns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/time/rate"

	"nemoclaw/specs/policy"
)

var client = Asker{Src: netip.MustParseAddrPort("198.18.0.2:40000")}

// newServer returns a server that lists api.example and what is below it, and
// the questions that it refused.
func newServer(t testing.TB) (*Server, *[]Question) {
	t.Helper()
	pool, err := OpenPool(nil)
	check(t, err)
	s := NewServer(pool)
	s.limit.SetLimit(rate.Inf)
	s.Listed = func(host string) bool { return host == "api.example" || strings.HasSuffix(host, ".api.example") }
	s.Search = []string{"corp.example", "svc.cluster.local"}
	var refused []Question
	s.Refused = func(q Question) { refused = append(refused, q) }
	return s, &refused
}

func ask(t testing.TB, s *Server, q *wire.Msg) *wire.Msg {
	t.Helper()
	packet, err := q.Pack()
	check(t, err)
	answer := s.Answer(packet, client, maxUDP)
	if answer == nil {
		return nil
	}
	m := new(wire.Msg)
	check(t, m.Unpack(answer))
	return m
}

// told writes an answer as the table compares it.
func told(m *wire.Msg) string {
	if m == nil {
		return "nothing"
	}
	s := wire.RcodeToString[m.Rcode]
	if m.Rcode == wire.RcodeBadVers { // which shares its number
		s = "BADVERS"
	}
	for _, rr := range m.Answer {
		s += fmt.Sprintf(" %s %s ttl=%d", wire.TypeToString[rr.Header().Rrtype], strings.TrimPrefix(rr.String(), rr.Header().String()), rr.Header().Ttl)
	}
	return s
}

// long253 is as long as a name can be, in labels as long as they can be.
var long253 = strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 61) + "."

func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		qtype  uint16
		want   string
		record string
	}{
		{"api.example.", wire.TypeA, "NOERROR A 198.19.0.0 ttl=5", ""},
		{"API.Example.", wire.TypeA, "NOERROR A 198.19.0.0 ttl=5", ""},
		{"x.api.example.", wire.TypeA, "NOERROR A 198.19.0.0 ttl=5", ""},
		{"other.example.", wire.TypeA, "NOERROR A 198.18.16.0 ttl=5", ""},
		{"single.", wire.TypeA, "NOERROR A 198.18.16.0 ttl=5", ""},
		{"_srv.under_score.example.", wire.TypeA, "NOERROR A 198.18.16.0 ttl=5", ""},
		{"api.example.", wire.TypeAAAA, "NOERROR", ""},
		{"api.example.", wire.TypeHTTPS, "NOERROR", ""},
		{"api.example.", wire.TypeSVCB, "NOERROR", ""},
		{"api.example.", wire.TypeANY, "NOERROR A 198.19.0.0 ttl=5", ""},
		{"secret.tunnel.example.", wire.TypeTXT, "NOERROR", "secret.tunnel.example TXT unsupported-type"},
		{"api.example.", wire.TypeMX, "NOERROR", "api.example MX unsupported-type"},
		{"secret.tunnel.example.", wire.TypeNULL, "NOERROR", "secret.tunnel.example NULL unsupported-type"},
		{"api.example.corp.example.", wire.TypeA, "NXDOMAIN", "api.example.corp.example A search-domain"},
		{"api.example.corp.example.", wire.TypeAAAA, "NXDOMAIN", ""},
		{"api.svc.cluster.local.", wire.TypeA, "NXDOMAIN", "api.svc.cluster.local A search-domain"},
		{"corp.example.", wire.TypeA, "NOERROR A 198.18.16.0 ttl=5", ""},
		{"evilcorp.example.", wire.TypeA, "NOERROR A 198.18.16.0 ttl=5", ""},
		{"use-application-dns.net.", wire.TypeA, "NXDOMAIN", ""},
		{"localhost.", wire.TypeA, "NOERROR A 127.0.0.1 ttl=5", ""},
		{"a.localhost.", wire.TypeAAAA, "NOERROR AAAA ::1 ttl=5", ""},
		{"a.invalid.", wire.TypeA, "NXDOMAIN", ""},
		{"a.onion.", wire.TypeA, "NXDOMAIN", ""},
		{".", wire.TypeNS, "NOERROR", ""},
		{"127.1.", wire.TypeA, "NXDOMAIN", "127.1. A bad-name"},
		{"0x7f000001.", wire.TypeA, "NXDOMAIN", "0x7f000001. A bad-name"},
		{`a\000b.example.`, wire.TypeA, "NXDOMAIN", `a\000b.example. A bad-name`},
		{`a\.b.example.`, wire.TypeA, "NXDOMAIN", `a\.b.example. A bad-name`},
		{"bücher.example.", wire.TypeA, "NXDOMAIN", `b\195\188cher.example. A bad-name`},
		{"xn--bcher-kva.example.", wire.TypeA, "NOERROR A 198.18.16.0 ttl=5", ""},
		{"aPi.ExAmPlE.", wire.TypeAAAA, "NOERROR", ""},
		{long253, wire.TypeA, "NOERROR A 198.18.16.0 ttl=5", ""},
		{"1.0.0.127.in-addr.arpa.", wire.TypePTR, "NOERROR PTR localhost. ttl=5", ""},
		{"1.2.3.4.in-addr.arpa.", wire.TypePTR, "NXDOMAIN", ""},
		{"1.0.18.198.in-addr.arpa.", wire.TypePTR, "NXDOMAIN", ""},
		{"home.arpa.", wire.TypeA, "NXDOMAIN", ""},
	} {
		t.Run(tc.name+" "+wire.TypeToString[tc.qtype], func(t *testing.T) {
			s, refused := newServer(t)
			q := new(wire.Msg)
			q.Id, q.RecursionDesired = 77, true
			q.Question = []wire.Question{{Name: tc.name, Qtype: tc.qtype, Qclass: wire.ClassINET}}
			m := ask(t, s, q)
			if got := told(m); got != tc.want {
				t.Errorf("answered %q, want %q", got, tc.want)
			}
			if m.Id != 77 || !m.Response || !m.RecursionDesired || !m.RecursionAvailable || m.Question[0] != q.Question[0] && tc.name != "bücher.example." {
				t.Errorf("the header or question is not the question's: %v", m)
			}
			record := ""
			for _, q := range *refused {
				record += fmt.Sprintf("%s %s %s", q.Host, q.Type, q.Reason)
			}
			if record != tc.record {
				t.Errorf("recorded %q, want %q", record, tc.record)
			}
		})
	}
}

// The addresses that we gave have names.
func TestReverse(t *testing.T) {
	s, _ := newServer(t)
	give(t, s.Pool, "api.example", true)
	q := new(wire.Msg)
	q.SetQuestion("0.0.19.198.in-addr.arpa.", wire.TypePTR)
	if got := told(ask(t, s, q)); got != "NOERROR PTR api.example. ttl=5" {
		t.Errorf("answered %q", got)
	}
}

func TestOddQuestions(t *testing.T) {
	question := func(change func(*wire.Msg)) *wire.Msg {
		q := new(wire.Msg)
		q.SetQuestion("api.example.", wire.TypeA)
		change(q)
		return q
	}
	for _, tc := range []struct {
		name string
		q    *wire.Msg
		want string
	}{
		{"an answer", question(func(q *wire.Msg) { q.Response = true }), "nothing"},
		{"an update", question(func(q *wire.Msg) { q.Opcode = wire.OpcodeUpdate }), "NOTIMP"},
		{"no question", question(func(q *wire.Msg) { q.Question = nil }), "FORMERR"},
		{"two questions", question(func(q *wire.Msg) { q.Question = append(q.Question, q.Question[0]) }), "FORMERR"},
		{"class CHAOS", question(func(q *wire.Msg) { q.Question[0].Qclass = wire.ClassCHAOS }), "REFUSED"},
		{"EDNS 1", question(func(q *wire.Msg) { q.SetEdns0(4096, false); q.IsEdns0().SetVersion(1) }), "BADVERS"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := newServer(t)
			if got := told(ask(t, s, tc.q)); got != tc.want {
				t.Errorf("answered %q, want %q", got, tc.want)
			}
		})
	}
}

// What is no question of one name is answered as such, or not at all.
func TestMalformedPackets(t *testing.T) {
	const header = "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
	for _, tc := range []struct{ name, packet, want string }{
		{"nothing", "", "nothing"},
		{"half a header", header[:6], "nothing"},
		{"a pointer to itself", header + "\xc0\x0c\x00\x01\x00\x01", "FORMERR"},
		{"two pointers at each other", header + "\xc0\x0e\xc0\x0c\x00\x01\x00\x01", "FORMERR"},
		{"a pointer behind the packet", header + "\xc0\xff\x00\x01\x00\x01", "FORMERR"},
		{"a label of 64", header + "\x40" + strings.Repeat("a", 64) + "\x00\x00\x01\x00\x01", "FORMERR"},
		{"a name of 256", header + strings.Repeat("\x3f"+strings.Repeat("a", 63), 4) + "\x00\x00\x01\x00\x01", "FORMERR"},
		{"a name without an end", header + "\x03api", "FORMERR"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := newServer(t)
			var m *wire.Msg
			if out := s.Answer([]byte(tc.packet), client, maxUDP); out != nil {
				m = new(wire.Msg)
				check(t, m.Unpack(out))
			}
			if got := told(m); got != tc.want {
				t.Errorf("answered %q, want %q", got, tc.want)
			}
		})
	}
}

// What a rule lets a program ask a nameserver for is told as the name's own, and
// in no other type; what does not fit is asked for again over TCP.
func TestBeyond(t *testing.T) {
	record := func(line string) wire.RR {
		rr, err := wire.NewRR(line)
		check(t, err)
		return rr
	}
	long := record(`api.example. 60 TXT "` + strings.Repeat("x", 255) + `" "` + strings.Repeat("y", 255) + `"`)
	for _, tc := range []struct {
		name  string
		qtype uint16
		found Found
		want  string // by any means
		cut   bool   // over UDP, without EDNS
	}{
		{"text", wire.TypeTXT, Found{Records: []wire.RR{record(`api.example. 9999 TXT "v=1" "b"`)}}, `NOERROR TXT "v=1" "b" ttl=5`, false},
		{"mail", wire.TypeMX, Found{Records: []wire.RR{record("api.example. 60 MX 10 mx.api.example.")}}, "NOERROR MX 10 mx.api.example. ttl=5", false},
		{"service", wire.TypeSRV, Found{Records: []wire.RR{record("api.example. 60 SRV 1 2 5269 x.example.")}}, "NOERROR SRV 1 2 5269 x.example. ttl=5", false},
		{"under an alias", wire.TypeTXT, Found{Records: []wire.RR{record(`other.example. 60 TXT "v"`)}}, `NOERROR TXT "v" ttl=5`, false},
		{"an address", wire.TypeTXT, Found{Records: []wire.RR{record("api.example. 60 A 93.184.216.34")}}, "NOERROR", false},
		{"none", wire.TypeTXT, Found{Rcode: wire.RcodeNameError}, "NXDOMAIN", false},
		{"failure", wire.TypeTXT, Found{Rcode: wire.RcodeServerFailure}, "SERVFAIL", false},
		{"long", wire.TypeTXT, Found{Records: []wire.RR{long}}, "NOERROR TXT " + strings.TrimPrefix(long.String(), long.Header().String()) + " ttl=5", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, refused := newServer(t)
			s.Beyond = func(host string, qtype uint16, _ Asker) func() Found {
				if host != "api.example" || qtype != tc.qtype {
					return nil
				}
				return func() Found { return tc.found }
			}
			q := new(wire.Msg)
			q.SetQuestion("aPi.example.", tc.qtype)
			m := ask(t, s, q)
			if m.Truncated != tc.cut || !tc.cut && told(m) != tc.want {
				t.Errorf("answered %q, cut off: %v; want %q, %v", told(m), m.Truncated, tc.want, tc.cut)
			}
			q.SetEdns0(4096, false)
			if got := told(ask(t, s, q)); got != tc.want {
				t.Errorf("with EDNS answered %q, want %q", got, tc.want)
			}
			for _, rr := range m.Answer {
				if rr.Header().Name != "aPi.example." {
					t.Errorf("a record of %s", rr.Header().Name)
				}
			}
			q.SetQuestion("x.api.example.", tc.qtype)
			if got := told(ask(t, s, q)); got != "NOERROR" || len(*refused) != 1 {
				t.Errorf("for another name answered %q, and recorded %v", got, *refused)
			}
		})
	}
}

// A nameserver that takes its time holds up nobody else's question, and only so
// many wait for it.
func TestSlowNameserver(t *testing.T) {
	s, _ := newServer(t)
	dropped := make(chan struct{}, 1)
	gate := make(chan struct{})
	s.Beyond = func(string, uint16, Asker) func() Found {
		return func() Found { <-gate; return Found{} }
	}
	s.Answered = func(how string) {
		if how == "dropped" {
			dropped <- struct{}{}
		}
	}
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	check(t, err)
	served := make(chan error, 1)
	go func() { served <- s.ServeUDP(u) }()
	c, err := net.Dial("udp4", u.LocalAddr().String())
	check(t, err)
	defer c.Close()
	q := new(wire.Msg)
	q.SetQuestion("api.example.", wire.TypeTXT)
	packet, err := q.Pack()
	check(t, err)
	for range maxAsking + 1 {
		_, err := c.Write(packet)
		check(t, err)
	}
	<-dropped
	q.SetQuestion("api.example.", wire.TypeA)
	m, err := wire.Exchange(q, u.LocalAddr().String())
	check(t, err)
	if got := told(m); got != "NOERROR A 198.19.0.0 ttl=5" {
		t.Errorf("answered %q", got)
	}
	close(gate)
	buf := make([]byte, maxUDP)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	for range maxAsking {
		_, err := c.Read(buf)
		check(t, err)
	}
	u.Close()
	check(t, <-served)
}

// EDNS is answered with EDNS, and only then.
func TestEDNS(t *testing.T) {
	s, _ := newServer(t)
	q := new(wire.Msg)
	q.SetQuestion("api.example.", wire.TypeA)
	if ask(t, s, q).IsEdns0() != nil {
		t.Error("EDNS was answered unasked")
	}
	q.SetEdns0(4096, true)
	if opt := ask(t, s, q).IsEdns0(); opt == nil || opt.UDPSize() != maxUDP || !opt.Do() {
		t.Errorf("the answer's EDNS is %v", opt)
	}
}

// Above the rate questions are dropped, whoever asks.
func TestRate(t *testing.T) {
	s, _ := newServer(t)
	s.limit = rate.NewLimiter(0, 3)
	q := new(wire.Msg)
	q.SetQuestion("api.example.", wire.TypeA)
	answered := 0
	for range 10 {
		if ask(t, s, q) != nil {
			answered++
		}
	}
	if answered != 3 {
		t.Errorf("%d of 10 questions were answered, want 3", answered)
	}
}

// Law 5, in small: when no address is left the answer is a failure, and a
// record, and nobody else is asked.
func TestExhausted(t *testing.T) {
	s, refused := newServer(t)
	s.Pool.shared = sharedBlock.size
	q := new(wire.Msg)
	q.SetQuestion("new.example.", wire.TypeA)
	if got := told(ask(t, s, q)); got != "SERVFAIL" {
		t.Errorf("answered %q", got)
	}
	if len(*refused) != 1 || (*refused)[0].Reason != policy.TooMany {
		t.Errorf("recorded %v", *refused)
	}
}

// A client of the library is answered over both transports, on real sockets.
func TestTransports(t *testing.T) {
	s, _ := newServer(t)
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	check(t, err)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	served := make(chan error, 2)
	go func() { served <- s.ServeUDP(u) }()
	go func() {
		c, err := l.Accept()
		if err == nil {
			s.ServeTCP(c, client.Src)
		}
		served <- err
	}()
	q := new(wire.Msg)
	q.SetQuestion("api.example.", wire.TypeA)
	for _, network := range []string{"udp", "tcp"} {
		to := u.LocalAddr().String()
		if network == "tcp" {
			to = l.Addr().String()
		}
		c := &wire.Client{Net: network, Timeout: 10 * time.Second}
		m, _, err := c.Exchange(q, to)
		check(t, err)
		if got := told(m); got != "NOERROR A 198.19.0.0 ttl=5" {
			t.Errorf("%s answered %q", network, got)
		}
	}
	u.Close()
	l.Close()
	for range 2 {
		check(t, <-served)
	}
}

// FuzzAnswer holds the law of the server: an answer is an answer, to the same
// question, no longer than allowed; every address in it stands for the name
// that was asked for, and is loopback's or ours to give.
func FuzzAnswer(f *testing.F) {
	for _, q := range []wire.Question{
		{Name: "api.example.", Qtype: wire.TypeA, Qclass: wire.ClassINET},
		{Name: "aPi.eXample.", Qtype: wire.TypeANY, Qclass: wire.ClassINET},
		{Name: "localhost.", Qtype: wire.TypeAAAA, Qclass: wire.ClassINET},
		{Name: "0.0.19.198.in-addr.arpa.", Qtype: wire.TypePTR, Qclass: wire.ClassINET},
	} {
		m := &wire.Msg{Question: []wire.Question{q}}
		plain, err := m.Pack()
		check(f, err)
		f.Add(plain)
		m.SetEdns0(4096, true)
		edns, err := m.Pack()
		check(f, err)
		f.Add(edns)
	}
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, packet []byte) {
		s, _ := newServer(t)
		out := s.Answer(packet, client, maxUDP)
		if out == nil {
			return
		}
		if len(out) > maxUDP {
			t.Fatalf("the answer has %d bytes", len(out))
		}
		m, q := new(wire.Msg), new(wire.Msg)
		check(t, m.Unpack(out))
		if !m.Response || m.Id != uint16(packet[0])<<8|uint16(packet[1]) {
			t.Fatalf("not an answer to the question: %v", m)
		}
		if q.Unpack(packet) != nil {
			if m.Rcode != wire.RcodeFormatError {
				t.Fatalf("what is malformed got %v", m)
			}
			return
		}
		if len(m.Question) != len(q.Question) || len(q.Question) == 1 && m.Question[0] != q.Question[0] {
			t.Fatalf("asked %v, answered %v", q.Question, m.Question)
		}
		for _, rr := range m.Answer {
			host, _ := policy.NormalHost(q.Question[0].Name)
			a, ok := rr.(*wire.A)
			if !ok {
				continue
			}
			addr, _ := netip.AddrFromSlice(a.A.To4())
			if name, _ := s.Pool.Name(addr); name != host && !addr.IsLoopback() {
				t.Fatalf("%s was given for %q and stands for %q", addr, host, name)
			}
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	s, _ := newServer(b)
	q := new(wire.Msg)
	q.SetQuestion("api.example.", wire.TypeA)
	packet, err := q.Pack()
	check(b, err)
	b.ReportAllocs()
	for b.Loop() {
		s.Answer(packet, client, maxUDP)
	}
}
