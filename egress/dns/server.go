package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/time/rate"

	"nemoclaw/egress/limits"
	"nemoclaw/specs/policy"
)

// What the server allows itself and its clients.
const (
	ttl          = 5                   // s; short, so that a reload finds few old answers
	maxUDP       = 1232                // bytes; the answer size of DNS Flag Day 2020
	perSecond    = limits.DNSPerSecond // questions a second; those beyond are dropped
	burst        = limits.DNSBurst     // questions
	tcpIdle      = limits.DNSIdle
	tcpQuestions = limits.DNSOnConn // on one connection
	maxFaults    = 100              // of a socket, in a row, before it is given up
	maxAsking    = limits.DNSBeyond // questions over UDP; those beyond are dropped
	maxRecords   = 64               // of an answer; more are left out
)

// Server answers questions. Fields are set before it is used.
type Server struct {
	Pool *Pool
	// Listed tells whether a rule in force could allow a name. If nil, none
	// is listed.
	Listed func(host string) bool
	// Search are the container's search domains, in normal form. Names below
	// them that are not listed do not exist: a client that completes names
	// would otherwise stop at the first completion.
	Search []string
	// Beyond, if not nil, says how to learn what a nameserver has for a name and
	// a type other than an address's, or nil where no rule allows that question.
	// What it returns is called on a goroutine of its own and may take long.
	Beyond func(host string, qtype uint16, by Asker) func() Found
	// Refused, if not nil, hears of the questions that a record is kept of, and
	// may take a while: the answer waits for it, so that whoever asked is still
	// there to be found.
	Refused func(Question)
	// Answered, if not nil, hears of every question how it was answered: by the
	// name of a response code (RFC 6895, 2.3), or "dropped".
	Answered func(how string)

	limit  *rate.Limiter
	asking atomic.Int64 // questions over UDP that wait for Beyond or Refused
}

// Asker is the far end of a question.
type Asker struct {
	Src netip.AddrPort
	// Dst is what was dialed, if it came on a connection. A datagram's is not
	// known: whatever server it is sent to, it comes here.
	Dst netip.AddrPort
}

// Found is what a nameserver has. Of the records only those of the type that
// was asked for are told, as the name's own, with a time to live of ours.
type Found struct {
	Rcode   int // NOERROR, NXDOMAIN or SERVFAIL
	Records []wire.RR
}

// Question is a question that was refused.
type Question struct {
	Host   string // normal form; as it came with BadName
	Type   string // "A", "TXT", "TYPE65280"
	Reason policy.Reason
	By     Asker
}

// NewServer returns a server that answers from pool.
func NewServer(pool *Pool) *Server {
	return &Server{Pool: pool, limit: rate.NewLimiter(perSecond, burst)}
}

// ServeUDP answers the questions that arrive on c until c is closed.
func (s *Server) ServeUDP(c *net.UDPConn) error {
	var waiting sync.WaitGroup
	defer waiting.Wait()
	buf := make([]byte, wire.MaxMsgSize)
	for faults := 0; ; {
		n, src, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// The ICMP error of an earlier answer is told here (udp(7)), once.
			if faults++; faults > maxFaults {
				return fmt.Errorf("cannot receive questions: %w", err)
			}
			continue
		}
		faults = 0
		send := func(r reply) {
			if answer := s.finish(r, maxUDP); answer != nil {
				c.WriteToUDPAddrPort(answer, src) // a lost answer is asked for again
			}
		}
		r := s.respond(buf[:n], Asker{Src: unmap(src)})
		switch {
		case r.ask == nil:
			send(r)
		case s.asking.Add(1) > maxAsking:
			s.asking.Add(-1)
			send(reply{})
		default:
			waiting.Go(func() {
				defer s.asking.Add(-1)
				send(r)
			})
		}
	}
}

// ServeTCP answers the questions that arrive on c (RFC 7766), which was dialed
// as dst, and closes it.
func (s *Server) ServeTCP(c net.Conn, dst netip.AddrPort) {
	defer c.Close()
	src, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	by := Asker{Src: unmap(src), Dst: dst}
	stream := &wire.Conn{Conn: c}
	buf := make([]byte, wire.MaxMsgSize)
	for range tcpQuestions {
		c.SetDeadline(time.Now().Add(tcpIdle))
		n, err := stream.Read(buf)
		if err != nil {
			return
		}
		answer := s.Answer(buf[:n], by, wire.MaxMsgSize)
		if answer == nil {
			return
		}
		if _, err := stream.Write(answer); err != nil {
			return
		}
	}
}

// Answer returns the answer to the question in packet, of at most size bytes,
// or nil where none is owed: above the rate, or to what is not a question.
func (s *Server) Answer(packet []byte, by Asker, size int) []byte {
	return s.finish(s.respond(packet, by), size)
}

// reply is an answer, or how to get it; neither is one that is not owed.
type reply struct {
	*wire.Msg
	ask  func() *wire.Msg
	room int // bytes that the client takes over UDP; 0: it said nothing
}

// finish packs an answer, and waits for it first if it has to be asked for.
func (s *Server) finish(r reply, size int) []byte {
	if r.ask != nil {
		r.Msg = r.ask()
	}
	if s.Answered != nil {
		how := "dropped"
		if r.Msg != nil {
			how = wire.RcodeToString[r.Rcode]
		}
		s.Answered(how)
	}
	if r.Msg == nil {
		return nil
	}
	if size <= maxUDP && r.room != 0 {
		size = min(size, r.room)
	}
	return pack(r.Msg, size)
}

func (s *Server) respond(packet []byte, by Asker) reply {
	if !s.limit.Allow() {
		return reply{}
	}
	q := new(wire.Msg)
	if err := q.Unpack(packet); err != nil {
		if len(packet) < 12 || q.Response { // not even a header (RFC 1035, 4.1.1)
			return reply{}
		}
		q.Question = nil
		return reply{Msg: answer(q, wire.RcodeFormatError)}
	}
	if q.Response {
		return reply{}
	}
	r := s.answer(q, by)
	r.room = wire.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		r.room = max(r.room, int(opt.UDPSize())) // RFC 6891, 6.2.3
	}
	return r
}

func (s *Server) answer(q *wire.Msg, by Asker) reply {
	switch {
	case q.Opcode != wire.OpcodeQuery:
		return reply{Msg: answer(q, wire.RcodeNotImplemented)}
	case len(q.Question) != 1:
		return reply{Msg: answer(q, wire.RcodeFormatError)}
	case q.Question[0].Qclass != wire.ClassINET:
		return reply{Msg: answer(q, wire.RcodeRefused)}
	case q.IsEdns0() != nil && q.IsEdns0().Version() != 0:
		return reply{Msg: answer(q, wire.RcodeBadVers)} // RFC 6891, 6.1.3
	}
	name, qtype := q.Question[0].Name, q.Question[0].Qtype
	if isReverse(name) {
		return reply{Msg: s.reverse(q, name, qtype)}
	}
	host, err := policy.NormalHost(name)
	switch {
	case name == ".":
		return reply{Msg: answer(q, wire.RcodeSuccess)}
	case err != nil:
		return s.refuse(answer(q, wire.RcodeNameError), Question{clip(name), wire.Type(qtype).String(), policy.BadName, by})
	}
	if find := s.beyond(host, qtype, by); find != nil {
		return reply{ask: func() *wire.Msg { return found(q, find()) }}
	}
	m, reason := s.forward(q, host, qtype)
	if reason == "" {
		return reply{Msg: m}
	}
	return s.refuse(m, Question{host, wire.Type(qtype).String(), reason, by})
}

// refuse is an answer that waits until the refusal was heard.
func (s *Server) refuse(m *wire.Msg, q Question) reply {
	if s.Refused == nil {
		return reply{Msg: m}
	}
	return reply{ask: func() *wire.Msg {
		s.Refused(q)
		return m
	}}
}

// beyond returns how to learn what only a nameserver knows, or nil.
func (s *Server) beyond(host string, qtype uint16, by Asker) func() Found {
	switch qtype {
	case wire.TypeTXT, wire.TypeMX, wire.TypeSRV:
		if s.Beyond != nil {
			return s.Beyond(host, qtype, by)
		}
	}
	return nil
}

// found makes the answer to q of what a nameserver has. Every record is made
// anew: nothing passes but what its type has room for. The names in it are
// asked for by themselves, and get addresses of ours.
func found(q *wire.Msg, f Found) *wire.Msg {
	m := answer(q, f.Rcode)
	asked := q.Question[0]
	for _, rr := range f.Records {
		if len(m.Answer) == maxRecords {
			break
		}
		h := header(asked.Name, asked.Qtype)
		switch rr := rr.(type) {
		case *wire.TXT:
			m.Answer = append(m.Answer, &wire.TXT{Hdr: h, Txt: rr.Txt})
		case *wire.MX:
			m.Answer = append(m.Answer, &wire.MX{Hdr: h, Preference: rr.Preference, Mx: rr.Mx})
		case *wire.SRV:
			m.Answer = append(m.Answer, &wire.SRV{Hdr: h, Priority: rr.Priority, Weight: rr.Weight, Port: rr.Port, Target: rr.Target})
		}
	}
	return m
}

// clip cuts a name that is none, which may be four times as long in writing
// (RFC 1035, 5.1), to what a record has room for.
func clip(name string) string { return name[:min(len(name), 256)] }

// forward answers a question about a host, and says why where that is a refusal
// that a record is kept of.
func (s *Server) forward(q *wire.Msg, host string, qtype uint16) (*wire.Msg, policy.Reason) {
	switch {
	case within(host, "localhost"): // RFC 6761, 6.3
		return localhost(q, qtype), ""
	case within(host, "invalid"), within(host, "onion"): // RFC 6761, 6.4; RFC 7686
		return answer(q, wire.RcodeNameError), ""
	case host == "use-application-dns.net": // asks browsers to leave DNS to us
		return answer(q, wire.RcodeNameError), ""
	}
	listed := s.Listed != nil && s.Listed(host)
	if !listed && s.completed(host) {
		if qtype == wire.TypeAAAA { // asked together with A
			return answer(q, wire.RcodeNameError), ""
		}
		return answer(q, wire.RcodeNameError), policy.SearchDomain
	}
	switch qtype {
	case wire.TypeA, wire.TypeANY: // ANY: one answer is enough (RFC 8482, 4.1)
		addr, err := s.Pool.Addr(host, listed)
		if err == ErrExhausted {
			return answer(q, wire.RcodeServerFailure), policy.TooMany
		}
		if err != nil {
			return answer(q, wire.RcodeServerFailure), ""
		}
		return answer(q, wire.RcodeSuccess, address(q.Question[0].Name, addr)), ""
	case wire.TypeAAAA, wire.TypeHTTPS, wire.TypeSVCB, wire.TypeSOA, wire.TypeNS:
		// Asked by every client; no HTTPS answer also means no keys for an
		// encrypted ClientHello.
		return answer(q, wire.RcodeSuccess), ""
	}
	return answer(q, wire.RcodeSuccess), policy.UnsupportedType
}

// completed tells whether host is what a search domain makes of a shorter name.
func (s *Server) completed(host string) bool {
	for _, domain := range s.Search {
		if strings.HasSuffix(host, "."+domain) {
			return true
		}
	}
	return false
}

func localhost(q *wire.Msg, qtype uint16) *wire.Msg {
	switch qtype {
	case wire.TypeA, wire.TypeANY:
		return answer(q, wire.RcodeSuccess, address(q.Question[0].Name, netip.AddrFrom4([4]byte{127, 0, 0, 1})))
	case wire.TypeAAAA:
		return answer(q, wire.RcodeSuccess, address(q.Question[0].Name, netip.IPv6Loopback()))
	}
	return answer(q, wire.RcodeSuccess)
}

// isReverse tells whether a name is one of the infrastructure's (RFC 3172).
func isReverse(name string) bool {
	return wire.IsSubDomain("arpa.", wire.CanonicalName(name))
}

// reverse answers for the addresses that we gave, and for no others.
func (s *Server) reverse(q *wire.Msg, name string, qtype uint16) *wire.Msg {
	host, ok := s.hostOf(wire.CanonicalName(name))
	if !ok {
		return answer(q, wire.RcodeNameError)
	}
	if qtype != wire.TypePTR && qtype != wire.TypeANY {
		return answer(q, wire.RcodeSuccess)
	}
	return answer(q, wire.RcodeSuccess, &wire.PTR{Hdr: header(name, wire.TypePTR), Ptr: host + "."})
}

func (s *Server) hostOf(name string) (string, bool) {
	labels := strings.Split(strings.TrimSuffix(name, ".in-addr.arpa."), ".")
	if len(labels) != 4 {
		return "", false
	}
	addr, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
	if err != nil {
		return "", false
	}
	if addr.IsLoopback() {
		return "localhost", true
	}
	return s.Pool.Name(addr)
}

// answer makes the answer to q. Its question is q's, letter by letter: some
// clients compare the case.
func answer(q *wire.Msg, rcode int, answers ...wire.RR) *wire.Msg {
	m := &wire.Msg{
		MsgHdr: wire.MsgHdr{
			Id: q.Id, Response: true, Opcode: q.Opcode, Rcode: rcode,
			RecursionDesired: q.RecursionDesired, RecursionAvailable: true,
		},
		Question: q.Question,
		Answer:   answers,
	}
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDP, opt.Do())
	}
	return m
}

// pack encodes an answer; one that does not fit into size says so and goes
// without its records (RFC 2181, 9).
func pack(m *wire.Msg, size int) []byte {
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	for _, shorten := range []func(){
		func() { m.Compress = true },
		func() { m.Truncated, m.Answer = true, nil },
	} {
		if len(b) <= size {
			break
		}
		shorten()
		if b, err = m.Pack(); err != nil {
			return nil
		}
	}
	return b
}

func address(name string, addr netip.Addr) wire.RR {
	if addr.Is4() {
		return &wire.A{Hdr: header(name, wire.TypeA), A: addr.AsSlice()}
	}
	return &wire.AAAA{Hdr: header(name, wire.TypeAAAA), AAAA: addr.AsSlice()}
}

func header(name string, rtype uint16) wire.RR_Header {
	return wire.RR_Header{Name: name, Rrtype: rtype, Class: wire.ClassINET, Ttl: ttl}
}

// within tells whether host is domain or below it.
func within(host, domain string) bool {
	rest, ok := strings.CutSuffix(host, domain)
	return ok && (rest == "" || rest[len(rest)-1] == '.')
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
