package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sync/singleflight"

	"nemoclaw/egress/dns"
)

// resolver asks the nameservers for the addresses of allowed names, and
// remembers them for as long as they say.
type resolver struct {
	ctx     context.Context // of the questions, which several callers may share
	servers []netip.Addr
	port    uint16  // of the servers
	engine  *engine // asked too; nil: there is none
	hosts   *hosts  // of the names that nobody is asked for; nil: none
	group   singleflight.Group
	// answered is which of servers did so last.
	answered atomic.Int64

	mu    sync.Mutex
	known map[string]answer
}

type answer struct {
	addrs []netip.Addr
	err   error
	until time.Time
}

// errNoAddress says that a name has none.
var errNoAddress = errors.New("the name has no address")

func newResolver(ctx context.Context, servers []netip.Addr) *resolver {
	return &resolver{ctx: ctx, servers: servers, port: 53, known: map[string]answer{}}
}

// lookup returns the addresses of host, the two families taking turns, IPv6
// first (RFC 8305, section 4).
func (r *resolver) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if addrs := r.hosts.addrs(host); len(addrs) > 0 {
		return addrs, nil
	}
	if a, ok := r.remembered(host); ok {
		return a.addrs, a.err
	}
	ch := r.group.DoChan(host, func() (any, error) {
		a := r.ask(host)
		r.remember(host, a)
		return a, nil
	})
	select {
	case res := <-ch:
		a := res.Val.(answer)
		return a.addrs, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("cannot resolve %s: %w", host, context.Cause(ctx))
	}
}

func (r *resolver) remembered(host string) (answer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.known[host]
	return a, ok && time.Now().Before(a.until)
}

func (r *resolver) remember(host string, a answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= maxNames {
		now := time.Now()
		for name, old := range r.known {
			if !now.Before(old.until) {
				delete(r.known, name)
			}
		}
	}
	for name := range r.known {
		if len(r.known) < maxNames {
			break
		}
		delete(r.known, name)
	}
	r.known[host] = a
}

// ask asks the nameservers, and an engine's resolver for what they do not know.
// For a name of one label, as containers have, it is the other way round.
func (r *resolver) ask(host string) answer {
	if r.engine == nil {
		return r.askBoth(host, r.query)
	}
	inside := func(host string, qtype uint16) (*wire.Msg, error) { return r.engine.query(r.ctx, host, qtype) }
	first, second := r.query, inside
	if !strings.Contains(host, ".") {
		first, second = inside, r.query
	}
	a := r.askBoth(host, first)
	if a.err == nil {
		return a
	}
	b := r.askBoth(host, second)
	if b.err != nil && b.err.Error() != a.err.Error() {
		b.err = fmt.Errorf("%w; %s", b.err, a.err)
	}
	return b
}

// half is what a family's question brought.
type half struct {
	six   bool
	addrs []netip.Addr
	ttl   time.Duration
	err   error
}

// askBoth asks for both families at once. One that cannot be had does not spoil
// the other, nor does a server that is slow about IPv6, or silent, hold up IPv4
// (RFC 8305, section 3): what comes later is there for the next connection. IPv4
// is waited for: many networks have nothing else.
func (r *resolver) askBoth(host string, query func(host string, qtype uint16) (*wire.Msg, error)) answer {
	halves := make(chan half, 2)
	for _, qtype := range []uint16{wire.TypeAAAA, wire.TypeA} {
		go func() {
			addrs, ttl, err := addressesFrom(query, host, qtype)
			halves <- half{qtype == wire.TypeAAAA, addrs, ttl, err}
		}()
	}
	first := <-halves
	if first.six || len(first.addrs) == 0 {
		return whole(first, <-halves)
	}
	late := time.NewTimer(familyTime)
	defer late.Stop()
	select {
	case second := <-halves:
		return whole(first, second)
	case <-late.C:
	}
	go func() {
		if second := <-halves; len(second.addrs) > 0 {
			r.remember(host, whole(first, second))
		}
	}()
	return whole(first, half{six: true, ttl: maxTTL})
}

// whole makes an answer of both halves.
func whole(a, b half) answer {
	if b.six {
		a, b = b, a
	}
	addrs := alternate(a.addrs, b.addrs)
	if len(addrs) == 0 {
		err := errNoAddress
		if e := firstOf(b.err, a.err); e != nil {
			err = fmt.Errorf("cannot resolve the name: %w", e)
		}
		return answer{err: err, until: time.Now().Add(badTTL)}
	}
	ttl := min(a.ttl, b.ttl)
	return answer{addrs: addrs, until: time.Now().Add(min(max(ttl, minTTL), maxTTL))}
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func alternate(a, b []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for i := range max(len(a), len(b)) {
		if i < len(a) {
			out = append(out, a[i])
		}
		if i < len(b) {
			out = append(out, b[i])
		}
	}
	return out
}

// addressesFrom returns the addresses of one family, and for how long.
func addressesFrom(query func(string, uint16) (*wire.Msg, error), host string, qtype uint16) ([]netip.Addr, time.Duration, error) {
	m, err := query(host, qtype)
	if err != nil {
		return nil, maxTTL, err
	}
	addrs, ttl := collect(m, host, qtype)
	return addrs, ttl, nil
}

// query asks each nameserver in turn until one answers, beginning with the one
// that answered last: one that is gone costs its time once, not for every name.
func (r *resolver) query(host string, qtype uint16) (*wire.Msg, error) {
	err := errors.New("no nameserver is known")
	begin := int(r.answered.Load())
	for range queryRounds {
		for i := range r.servers {
			n := (begin + i) % len(r.servers)
			var m *wire.Msg
			if m, err = r.exchange(r.servers[n], host, qtype); err == nil {
				r.answered.Store(int64(n))
				return m, nil
			}
			if r.ctx.Err() != nil {
				return nil, err
			}
		}
	}
	return nil, err
}

// beyond asks for the records of another type than an address's. They may stand
// under an alias of the name.
func (r *resolver) beyond(host string, qtype uint16) (dns.Found, error) {
	m, err := r.query(host, qtype)
	if err != nil {
		return dns.Found{Rcode: wire.RcodeServerFailure}, err
	}
	found := dns.Found{Rcode: m.Rcode}
	owner := host + "."
	for range maxAddrs { // aliases of aliases, and no circle
		next := ""
		for _, rr := range m.Answer {
			if !strings.EqualFold(rr.Header().Name, owner) || rr.Header().Class != wire.ClassINET {
				continue
			}
			if c, ok := rr.(*wire.CNAME); ok {
				next = c.Target
			} else if rr.Header().Rrtype == qtype {
				found.Records = append(found.Records, rr)
			}
		}
		if next == "" || len(found.Records) > 0 {
			break
		}
		owner = next
	}
	return found, nil
}

// exchange asks one nameserver over UDP, and over TCP if the answer was cut.
func (r *resolver) exchange(server netip.Addr, host string, qtype uint16) (*wire.Msg, error) {
	q := question(host, qtype)
	to := netip.AddrPortFrom(server, r.port).String()
	for _, network := range []string{"udp", "tcp"} {
		m, err := r.send(network, to, q)
		if err != nil {
			return nil, fmt.Errorf("nameserver %s: %s", server, cause(err))
		}
		if m.Truncated && network == "udp" {
			continue
		}
		if err := answers(q, m); err != nil {
			return nil, fmt.Errorf("nameserver %s: %w", server, err)
		}
		return m, nil
	}
	return nil, fmt.Errorf("nameserver %s: the answer is cut off", server)
}

func question(host string, qtype uint16) *wire.Msg {
	q := new(wire.Msg)
	q.SetQuestion(host+".", qtype)
	q.SetEdns0(1232, false)
	return q
}

// answers says why m does not answer q; nil if it does, be it that there is no
// such name.
func answers(q, m *wire.Msg) error {
	asked := q.Question[0]
	if len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, asked.Name) || m.Question[0].Qtype != asked.Qtype {
		return errors.New("the answer is to another question")
	}
	if m.Rcode != wire.RcodeSuccess && m.Rcode != wire.RcodeNameError {
		return errors.New(wire.RcodeToString[m.Rcode])
	}
	return nil
}

// send sends one question over a socket of its own, whose port the kernel
// chooses at random.
func (r *resolver) send(network, to string, q *wire.Msg) (*wire.Msg, error) {
	ctx, cancel := context.WithTimeout(r.ctx, queryTime)
	defer cancel()
	client := wire.Client{Net: network, Timeout: queryTime, UDPSize: 1232}
	c, err := client.DialContext(ctx, to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	m, _, err := client.ExchangeWithConnContext(ctx, q, c)
	return m, err
}

// collect returns the addresses that an answer gives to host, through its
// aliases, and for how long.
func collect(m *wire.Msg, host string, qtype uint16) ([]netip.Addr, time.Duration) {
	var addrs []netip.Addr
	ttl := maxTTL
	owner := host + "."
	for range maxAddrs { // aliases of aliases, and no circle
		next := ""
		for _, rr := range m.Answer {
			if !strings.EqualFold(rr.Header().Name, owner) {
				continue
			}
			var ip net.IP
			switch rr := rr.(type) {
			case *wire.CNAME:
				next = rr.Target
			case *wire.A:
				ip = rr.A
			case *wire.AAAA:
				ip = rr.AAAA
			default:
				continue
			}
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
			if rr.Header().Rrtype != qtype {
				continue
			}
			if a, ok := netip.AddrFromSlice(ip); ok {
				if qtype == wire.TypeA {
					a = a.Unmap()
				}
				addrs = append(addrs, a)
			}
		}
		if next == "" {
			break
		}
		owner = next
	}
	return addrs, ttl
}
