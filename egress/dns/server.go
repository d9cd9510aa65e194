package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
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
	// Refused, if not nil, hears of the questions that a record is kept of.
	Refused func(Question)
	// Answered, if not nil, hears of every question how it was answered: by the
	// name of a response code (RFC 6895, 2.3), or "dropped".
	Answered func(how string)

	limit *rate.Limiter
}

// Question is a question that was refused.
type Question struct {
	Host   string // normal form
	Type   string // "A", "TXT", "TYPE65280"
	Reason policy.Reason
	Src    netip.AddrPort
}

// NewServer returns a server that answers from pool.
func NewServer(pool *Pool) *Server {
	return &Server{Pool: pool, limit: rate.NewLimiter(perSecond, burst)}
}

// ServeUDP answers the questions that arrive on c until c is closed.
func (s *Server) ServeUDP(c *net.UDPConn) error {
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
		if answer := s.Answer(buf[:n], unmap(src), maxUDP); answer != nil {
			c.WriteToUDPAddrPort(answer, src) // a lost answer is asked for again
		}
	}
}

// ServeTCP answers the questions that arrive on c (RFC 7766) and closes it.
func (s *Server) ServeTCP(c net.Conn) {
	defer c.Close()
	src, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	stream := &wire.Conn{Conn: c}
	buf := make([]byte, wire.MaxMsgSize)
	for range tcpQuestions {
		c.SetDeadline(time.Now().Add(tcpIdle))
		n, err := stream.Read(buf)
		if err != nil {
			return
		}
		answer := s.Answer(buf[:n], unmap(src), wire.MaxMsgSize)
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
func (s *Server) Answer(packet []byte, src netip.AddrPort, size int) []byte {
	m := s.respond(packet, src)
	if s.Answered != nil {
		how := "dropped"
		if m != nil {
			how = wire.RcodeToString[m.Rcode]
		}
		s.Answered(how)
	}
	if m == nil {
		return nil
	}
	return pack(m, size)
}

// respond is Answer before it is packed.
func (s *Server) respond(packet []byte, src netip.AddrPort) *wire.Msg {
	if !s.limit.Allow() {
		return nil
	}
	q := new(wire.Msg)
	if err := q.Unpack(packet); err != nil {
		if len(packet) < 12 || q.Response { // not even a header (RFC 1035, 4.1.1)
			return nil
		}
		q.Question = nil
		return reply(q, wire.RcodeFormatError)
	}
	if q.Response {
		return nil
	}
	return s.answer(q, src)
}

func (s *Server) answer(q *wire.Msg, src netip.AddrPort) *wire.Msg {
	switch {
	case q.Opcode != wire.OpcodeQuery:
		return reply(q, wire.RcodeNotImplemented)
	case len(q.Question) != 1:
		return reply(q, wire.RcodeFormatError)
	case q.Question[0].Qclass != wire.ClassINET:
		return reply(q, wire.RcodeRefused)
	case q.IsEdns0() != nil && q.IsEdns0().Version() != 0:
		return reply(q, wire.RcodeBadVers) // RFC 6891, 6.1.3
	}
	name, qtype := q.Question[0].Name, q.Question[0].Qtype
	if isReverse(name) {
		return s.reverse(q, name, qtype)
	}
	host, err := policy.NormalHost(name)
	if err != nil {
		if name == "." {
			return reply(q, wire.RcodeSuccess)
		}
		return reply(q, wire.RcodeNameError)
	}
	return s.forward(q, host, qtype, src)
}

// forward answers a question about a host.
func (s *Server) forward(q *wire.Msg, host string, qtype uint16, src netip.AddrPort) *wire.Msg {
	switch {
	case within(host, "localhost"): // RFC 6761, 6.3
		return localhost(q, qtype)
	case within(host, "invalid"), within(host, "onion"): // RFC 6761, 6.4; RFC 7686
		return reply(q, wire.RcodeNameError)
	case host == "use-application-dns.net": // asks browsers to leave DNS to us
		return reply(q, wire.RcodeNameError)
	}
	listed := s.Listed != nil && s.Listed(host)
	if !listed && s.completed(host) {
		if qtype != wire.TypeAAAA { // asked together with A
			s.refused(host, qtype, policy.SearchDomain, src)
		}
		return reply(q, wire.RcodeNameError)
	}
	switch qtype {
	case wire.TypeA, wire.TypeANY: // ANY: one answer is enough (RFC 8482, 4.1)
		addr, err := s.Pool.Addr(host, listed)
		if err == ErrExhausted {
			s.refused(host, qtype, policy.TooMany, src)
		}
		if err != nil {
			return reply(q, wire.RcodeServerFailure)
		}
		return reply(q, wire.RcodeSuccess, address(q.Question[0].Name, addr))
	case wire.TypeAAAA, wire.TypeHTTPS, wire.TypeSVCB, wire.TypeSOA, wire.TypeNS:
		// Asked by every client; no HTTPS answer also means no keys for an
		// encrypted ClientHello.
	default:
		s.refused(host, qtype, policy.UnsupportedType, src)
	}
	return reply(q, wire.RcodeSuccess)
}

func (s *Server) refused(host string, qtype uint16, reason policy.Reason, src netip.AddrPort) {
	if s.Refused != nil {
		s.Refused(Question{Host: host, Type: wire.Type(qtype).String(), Reason: reason, Src: src})
	}
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
		return reply(q, wire.RcodeSuccess, address(q.Question[0].Name, netip.AddrFrom4([4]byte{127, 0, 0, 1})))
	case wire.TypeAAAA:
		return reply(q, wire.RcodeSuccess, address(q.Question[0].Name, netip.IPv6Loopback()))
	}
	return reply(q, wire.RcodeSuccess)
}

// isReverse tells whether a name is one of the infrastructure's (RFC 3172).
func isReverse(name string) bool {
	return wire.IsSubDomain("arpa.", wire.CanonicalName(name))
}

// reverse answers for the addresses that we gave, and for no others.
func (s *Server) reverse(q *wire.Msg, name string, qtype uint16) *wire.Msg {
	host, ok := s.hostOf(wire.CanonicalName(name))
	if !ok {
		return reply(q, wire.RcodeNameError)
	}
	if qtype != wire.TypePTR && qtype != wire.TypeANY {
		return reply(q, wire.RcodeSuccess)
	}
	return reply(q, wire.RcodeSuccess, &wire.PTR{Hdr: header(name, wire.TypePTR), Ptr: host + "."})
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

// reply makes the answer to q. Its question is q's, letter by letter: some
// clients compare the case.
func reply(q *wire.Msg, rcode int, answers ...wire.RR) *wire.Msg {
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
	if len(b) > size {
		m.Truncated, m.Answer = true, nil
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
