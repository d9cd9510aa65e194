package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	wire "github.com/miekg/dns"

	"nemoclaw/egress/control"
	"nemoclaw/egress/dns"
)

// engine asks the resolver that the engine keeps inside the sandbox's
// namespace, which knows the names of other containers. The monitor makes the
// connections, one for each question: it alone can enter that namespace, and
// tell that resolver from what a program puts in its place.
type engine struct {
	conn    *control.Conn
	mu      sync.Mutex
	n       uint64
	waiting map[uint64]chan dialedEngine
}

type dialedEngine struct {
	c   *net.TCPConn
	err error
}

func newEngine(conn *control.Conn) *engine {
	return &engine{conn: conn, waiting: map[uint64]chan dialedEngine{}}
}

// query asks for one type of record. Where the engine does not know a name, it
// may have asked around from inside, and got one of our own addresses: those
// are nobody's.
func (e *engine) query(ctx context.Context, host string, qtype uint16) (*wire.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	m, err := e.exchange(ctx, question(host, qtype))
	if err != nil {
		return nil, fmt.Errorf("the engine's resolver: %s", cause(err))
	}
	kept := m.Answer[:0]
	for _, rr := range m.Answer {
		if a, ok := rr.(*wire.A); ok && isSynthetic(a.A) {
			continue
		}
		rr.Header().Ttl = min(rr.Header().Ttl, uint32(engineTTL/time.Second))
		kept = append(kept, rr)
	}
	m.Answer = kept
	return m, nil
}

func isSynthetic(ip net.IP) bool {
	a, ok := netip.AddrFromSlice(ip)
	return ok && dns.Synthetic(a.Unmap())
}

func (e *engine) exchange(ctx context.Context, q *wire.Msg) (*wire.Msg, error) {
	c, err := e.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	client := wire.Client{Net: "tcp", Timeout: queryTime}
	m, _, err := client.ExchangeWithConnContext(ctx, q, &wire.Conn{Conn: c})
	if err != nil {
		return nil, err
	}
	return m, answers(q, m)
}

// dial returns a connection from the monitor.
func (e *engine) dial(ctx context.Context) (*net.TCPConn, error) {
	answer := make(chan dialedEngine, 1)
	e.mu.Lock()
	e.n++
	n := e.n
	e.waiting[n] = answer
	e.mu.Unlock()
	if err := e.conn.Send(control.ToMonitorFromWorker{Engine: &control.Engine{N: n}}); err != nil {
		e.take(n)
		return nil, err
	}
	select {
	case d := <-answer:
		return d.c, d.err
	case <-ctx.Done():
		if e.take(n) == nil { // it has come meanwhile
			if d := <-answer; d.c != nil {
				d.c.Close()
			}
		}
		return nil, context.Cause(ctx)
	}
}

// take returns who waits for the nth connection, who then waits no more.
func (e *engine) take(n uint64) chan dialedEngine {
	e.mu.Lock()
	defer e.mu.Unlock()
	answer := e.waiting[n]
	delete(e.waiting, n)
	return answer
}

// dialed hands what the monitor answered to who waits for it. Files are closed
// here: the net package duplicates them.
func (e *engine) dialed(m *control.Dialed, files []*os.File) {
	defer control.CloseAll(files)
	answer := e.take(m.N)
	if answer == nil {
		return
	}
	answer <- received(m, files)
}

func received(m *control.Dialed, files []*os.File) dialedEngine {
	if m.Fault != "" {
		return dialedEngine{err: errors.New(m.Fault)}
	}
	if len(files) != 1 {
		return dialedEngine{err: fmt.Errorf("cannot use a connection: %d descriptors came", len(files))}
	}
	c, err := net.FileConn(files[0])
	if err != nil {
		return dialedEngine{err: fmt.Errorf("cannot use a connection: %w", err)}
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return dialedEngine{err: errors.New("cannot use a connection: it is not a TCP socket")}
	}
	return dialedEngine{c: t}
}
