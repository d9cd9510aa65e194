package worker

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// flow is one connection of a program, from accept to its last record.
type flow struct {
	s       *server
	c       *net.TCPConn // the program's
	src     netip.AddrPort
	dst     netip.AddrPort // as the program dialed it
	target  target
	named   bool // dst stands for target.host and is kept open in the pool
	request string
	started time.Time
	ctx     context.Context
	cancel  context.CancelFunc

	by      policy.Owner // as far as it was asked for
	asked   bool         // for the owner
	granted uint64       // the counted grant of which it has a use; 0: none
	why     string       // detail of a refusal by a rule's bound
	waits   bool         // it has a place among those that wait for the operator
	tally   *tally       // guarded by flows.mu; nil: not counted by its rule
	meter   *meter       // nil until up is there

	proto    string // "tcp", "tls", "http", "dns"
	method   string
	got      int64
	recorded bool        // as allowed
	last     atomic.Bool // the program's side stays open behind the server's end, for our last words

	mu      sync.Mutex
	verdict verdict
	raw     bool           // any protocol was allowed to pass
	up      *net.TCPConn   // the server's; nil until dialed
	addr    netip.AddrPort // of up
	counted bool           // it has passed its rule's bounds
	served  bool           // it is looked after until its end
	idle    *time.Timer    // nil: it may be silent for ever
	cut     policy.Reason  // why it ends before its time; empty: it does not
	detail  string
	gone    bool // aborted
}

// flows are the allowed connections.
type flows struct {
	mu      sync.Mutex
	set     map[*flow]struct{}
	tallies map[string]*tally // by the rule's key
}

// add enters f unless there are as many as there may be.
func (fs *flows) add(f *flow, most int) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.set) >= most {
		return false
	}
	if fs.set == nil {
		fs.set = map[*flow]struct{}{}
	}
	fs.set[f] = struct{}{}
	return true
}

func (fs *flows) remove(f *flow) {
	fs.mu.Lock()
	delete(fs.set, f)
	if f.tally != nil {
		f.tally.open--
		f.tally = nil
	}
	fs.mu.Unlock()
}

// all returns them in the order in which they began.
func (fs *flows) all() []*flow {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	list := make([]*flow, 0, len(fs.set))
	for f := range fs.set {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b *flow) int { return a.started.Compare(b.started) })
	return list
}

// slots bound how many of something there are at once.
type slots struct{ free atomic.Int64 }

func (s *slots) take() bool {
	if s.free.Add(-1) >= 0 {
		return true
	}
	s.free.Add(1)
	return false
}

func (s *slots) give() { s.free.Add(1) }

// admit decides a new connection and has it served. It does not block.
func (s *server) admit(c *net.TCPConn) {
	f := &flow{
		s: s, c: c, proto: "tcp", started: time.Now(),
		src: addrPort(c.RemoteAddr()), dst: s.dialed(c),
	}
	f.find()
	if f.target.host == "" && f.target.port == 53 {
		s.admitDNS(c) // a resolver of its own choice: it gets our answers
		return
	}
	f.request = s.boot + "-" + strconv.FormatUint(s.serial.Add(1), 10)
	known := s.enter(f)
	f.decide(f.started) // entered first: rules that change meanwhile find it
	if !f.verdict.asks || !known {
		s.settle(f, known)
		return
	}
	s.wg.Go(func() {
		f.identify()
		f.decide(time.Now())
		s.settle(f, known)
	})
}

func (s *server) enter(f *flow) bool {
	return s.flows.add(f, min(s.rules.Load().flows(), s.room))
}

// roomFor is how many connections there may be with so many open files: two
// sockets each, and what is short-lived needs some too. Those beyond are told at
// once; without this they would wait, accepted by nobody, for others to end.
func roomFor(files uint64) int {
	const others, least = maxRefusals + maxDNSConns + 64, 16
	return int(max(least, (min(files, 1<<20)-min(files, others))/2))
}

// identify learns whose connection this is, for rules that depend on it. It
// takes a round trip; f.mu must not be held.
func (f *flow) identify() {
	p := f.owner().Process
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = true
	if p != nil && p.Unsure == "" {
		f.by.Exe = p.Exe
	}
}

// settle does what was decided, unless the operator is to be waited for.
func (s *server) settle(f *flow, known bool) {
	if !f.verdict.allow {
		s.flows.remove(f)
		if s.hold(f) {
			return
		}
	}
	s.conclude(f, known)
}

// conclude does what was decided. It does not block.
func (s *server) conclude(f *flow, known bool) {
	if !f.verdict.allow {
		s.decline(f)
		return
	}
	var reason policy.Reason
	if known {
		reason, f.why = f.count(time.Now())
	}
	if known && reason == "" {
		s.wg.Go(f.serve)
		return
	}
	s.flows.remove(f)
	f.cancel()
	f.verdict.allow, f.verdict.reason = false, reason
	if known {
		s.decline(f)
		return
	}
	f.waited()
	f.verdict.reason = policy.TooMany
	f.refuseAtOnce()
}

// decline refuses politely where there is room, else at once.
func (s *server) decline(f *flow) {
	f.waited()
	if f.verdict.reason == policy.Cancelled { // there is nobody to be told
		s.records.note(f.record(control.Refuse, policy.Cancelled, ""))
		f.unname()
		reset(f.c)
		return
	}
	if !s.refusals.take() {
		f.refuseAtOnce()
		return
	}
	s.wg.Go(func() {
		defer s.refusals.give()
		defer f.close()
		f.refuse(f.sniff())
	})
}

// owner asks whose connection this is. It takes a round trip, and f.mu must not
// be held: only where a rule depends on it.
func (f *flow) owner() control.Whois { return f.s.asked.ask(f.s.ctx, f.src, f.dst) }

// admitDNS serves a connection that carries DNS.
func (s *server) admitDNS(c *net.TCPConn) {
	if !s.dnsConns.take() {
		reset(c)
		return
	}
	stop := context.AfterFunc(s.ctx, func() { c.Close() })
	s.wg.Go(func() {
		defer s.dnsConns.give()
		defer stop()
		s.dns.ServeTCP(c, s.nameserver(c))
	})
}

// nameserver is the one that a program dialed. A question to the engine's own
// is turned to ours by the fence; connection tracking knows it
// (SO_ORIGINAL_DST, linux/netfilter_ipv4.h, for which there is a sockaddr_in to
// be read).
func (s *server) nameserver(c *net.TCPConn) netip.AddrPort {
	dst := s.dialed(c)
	raw, err := c.SyscallConn()
	if err != nil || !dst.Addr().Is4() {
		return dst
	}
	_ = raw.Control(func(fd uintptr) {
		if sa, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST); err == nil {
			dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa.Multiaddr[4:8])), binary.BigEndian.Uint16(sa.Multiaddr[2:]))
		}
	})
	return dst
}

func (s *server) dialed(c *net.TCPConn) netip.AddrPort {
	if s.Dialed != nil {
		return s.Dialed(c)
	}
	return addrPort(c.LocalAddr())
}

// find tells what the program means by the address that it dialed.
func (f *flow) find() {
	f.target = target{addr: f.dst.Addr(), port: f.dst.Port()}
	if host, ok := f.s.pool.Open(f.dst.Addr()); ok {
		f.named = true
		f.target = target{host: host, port: f.dst.Port()}
		return
	}
	f.target = f.s.hosts.meant(f.target, func(t target) bool {
		return f.s.rules.Load().decide(attempt{target: t}, time.Now()).allow
	})
}

// decide asks the rules in force. It and recheck exclude each other, so that a
// connection is either decided by new rules or checked again by them.
func (f *flow) decide(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.verdict = f.s.rules.Load().decide(f.attempt(), now)
	f.raw = f.verdict.raw()
	if f.verdict.allow && f.target.host == "" {
		if reason, _ := f.s.guard.judge(f.target.addr, f.verdict.private); reason != "" {
			f.waited()
			f.verdict.allow, f.verdict.reason = false, reason
		}
	}
	switch {
	case f.verdict.allow && f.cancel == nil: // from here on recheck may cut it
		f.ctx, f.cancel = context.WithCancel(f.s.ctx)
	case !f.verdict.allow && f.cancel != nil: // it was, before its owner was known
		f.cancel()
		f.ctx, f.cancel = nil, nil
	}
}

// attempt is what the rules are asked. f.mu is held.
func (f *flow) attempt() attempt {
	return attempt{target: f.target, by: f.by, request: f.request, used: f.granted != 0, waits: f.s.waiting.has}
}

// inForce is the verdict by the rules as they are now.
func (f *flow) inForce() verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.verdict
}

// recheck ends an allowed connection that r does not allow any more, and
// tells whether it did.
func (f *flow) recheck(r *rules, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.verdict.allow || f.cut != "" || f.gone {
		return false
	}
	v := r.decide(f.attempt(), now)
	if v.asks && !f.asked && f.s.ctx.Err() == nil {
		f.s.wg.Go(func() { // it comes again when the owner is known
			f.identify()
			f.recheck(f.s.rules.Load(), time.Now())
		})
		return false
	}
	ok := v.allow && (v.raw() || !f.raw || !strict(f.target.port))
	if ok && f.addr.IsValid() {
		ok = f.s.guard.permits(v, f.addr, now)
	}
	if ok {
		same := f.verdict.rules == v.rules && f.verdict.rule == v.rule
		f.verdict.rules, f.verdict.rule, f.verdict.spends = v.rules, v.rule, v.spends // for a dial to come, or under way
		return !same && f.bind(now)
	}
	f.cut = policy.Revoked
	f.verdict.where, f.verdict.generation = v.where, v.generation
	f.abortLocked()
	return true
}

// bind has the bounds of the rule that allows the connection now hold for it, and
// tells whether they end it. f.mu is held.
func (f *flow) bind(now time.Time) bool {
	if f.counted {
		if reason, why := f.s.flows.recount(f, f.verdict.rule, now); reason != "" {
			f.endLocked(reason, why)
			return true
		}
	}
	if f.meter != nil {
		f.meter.limit(f.verdict.uploads())
	}
	f.watchIdle()
	return f.cut != ""
}

// isOpen tells whether the connection is allowed and has not ended.
func (f *flow) isOpen() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.verdict.allow && !f.gone
}

// strict tells whether only one protocol passes a port, unless a rule is raw.
func strict(port uint16) bool { return port == 80 || port == 443 }

// serve takes an allowed connection to its end.
func (f *flow) serve() {
	defer f.close()
	defer f.s.flows.remove(f)
	defer f.cancel()
	f.mu.Lock()
	f.served = true
	f.watchIdle()
	f.mu.Unlock()
	switch {
	case f.raw || !strict(f.target.port):
		f.serveAny()
	case f.target.port == 443:
		f.serveTLS()
	default:
		f.serveHTTP()
	}
}

// serveTLS passes a connection whose first flight names the right host.
func (f *flow) serveTLS() {
	src, err := newSource(f.c)
	if err != nil {
		return
	}
	defer src.release()
	if fault := f.screenHello(src); fault != nil {
		f.refuse(*fault)
		return
	}
	f.proto = "tls"
	if f.open() {
		f.relay(src)
	}
}

// serveAny passes whatever is spoken. The server may speak first; a
// ClientHello is checked when it comes.
func (f *flow) serveAny() {
	src, err := newSource(f.c)
	if err != nil || !f.open() {
		return
	}
	f.relay(src)
}

// relay copies both ways until both have ended, and records the end.
func (f *flow) relay(src *source) {
	back, err := newSource(f.up)
	if err != nil {
		f.abort()
	} else {
		done := make(chan struct{})
		f.s.wg.Go(func() {
			defer close(done)
			f.got = f.pass(f.c, back)
		})
		if f.proto != "tcp" || f.raw || f.screenLate(src) {
			f.pass(f.up, src)
		}
		f.linger(done)
	}
	f.finish()
}

// linger waits for done, the end of what the server says, when the program has
// said all. Once nobody holds the program's end any more nobody hears the server
// either, and that ends too; what was sent to it arrives.
func (f *flow) linger(done <-chan struct{}) {
	if raw, err := f.c.SyscallConn(); err == nil {
		f.s.wg.Go(func() {
			if raw.Read(isGone) == nil {
				f.up.SetReadDeadline(time.Unix(1, 0))
			}
		})
	}
	<-done
	f.c.SetReadDeadline(time.Unix(1, 0)) // it is watched no more
}

// screenLate checks the first bytes of a connection that is open already. A
// ClientHello for another host ends it.
func (f *flow) screenLate(src *source) bool {
	b, err := f.firstBytes(src)
	if err != nil {
		f.ended(f.up, f.c, err)
		return false
	}
	if stray, _ := strayRecord(b); stray {
		f.end(policy.Malformed, "a TLS record stands before the ClientHello")
		return false
	}
	if b[0] != recordHandshake {
		return true
	}
	fault := f.screenHello(src)
	switch {
	case fault == nil:
		f.proto = "tls"
	case fault.reason == policy.NoName:
		f.proto = "tls"
	case fault.reason == policy.NotTLS:
	default:
		f.end(fault.reason, fault.detail)
		return false
	}
	return true
}

// firstBytes reads until it is known whether TLS begins. PostgreSQL's question
// for it is passed on: the ClientHello follows the server's answer.
func (f *flow) firstBytes(src *source) ([]byte, error) {
	for {
		b, err := src.more(copySize)
		for asks, _ := asksForTLS(b); asks; asks, _ = asksForTLS(b) {
			if _, err := f.way(f.up).Write(b[:len(sslRequest)]); err != nil {
				return nil, err
			}
			src.skip(len(sslRequest))
			b = src.buf
		}
		if err != nil && len(b) > 0 {
			return b, nil // not TLS, and its end comes again
		}
		if err != nil {
			return nil, err
		}
		_, asking := asksForTLS(b)
		_, record := strayRecord(b)
		if !asking && !record {
			return b, nil
		}
	}
}

// screenHello reads a ClientHello, however many pieces it comes in, and
// compares the name in it. What was read stays in src.
func (f *flow) screenHello(src *source) *fault {
	b := src.buf
	for {
		name, err := parseHello(b)
		switch {
		case err == errNotTLS:
			return &fault{reason: policy.NotTLS, proto: "tcp"}
		case err == errBadHello:
			return &fault{reason: policy.Malformed, proto: "tls", detail: err.Error()}
		case err == nil:
			return f.compareName(name)
		}
		if b, err = src.more(maxHello + maxHello/16); err == nil {
			continue
		}
		if err == io.ErrShortBuffer {
			return &fault{reason: policy.Malformed, proto: "tls", detail: "the ClientHello is too long"}
		}
		return &fault{reason: policy.NotTLS, proto: "tcp", detail: "it ended before a ClientHello"}
	}
}

// compareName compares the name of a ClientHello with the one that was looked
// up. A rule that names an address allows whatever is served there.
func (f *flow) compareName(sni string) *fault {
	if f.target.host == "" {
		return nil
	}
	if sni == "" {
		return &fault{reason: policy.NoName, proto: "tls", detail: "the ClientHello names no host"}
	}
	if name, err := policy.NormalHost(sni); err != nil || name != f.target.host {
		return &fault{reason: policy.NameMismatch, proto: "tls", detail: fmt.Sprintf("SNI %q", sni)}
	}
	return nil
}

// readers read requests. What one program said is gone when the next one's are
// read (bufio.Reader.Reset).
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4096) }}

// serveHTTP relays requests one by one.
func (f *flow) serveHTTP() {
	br := readers.Get().(*bufio.Reader)
	br.Reset(f.c)
	defer func() {
		br.Reset(nil)
		readers.Put(br)
	}()
	h, fault := f.readHead(br)
	if fault != nil {
		f.refuse(*fault)
		return
	}
	f.proto, f.method = "http", h.method
	if f.open() {
		f.relayHTTP(br, h)
		f.finish()
	}
}

// open has the decision recorded and connects to the server. If it returns
// false the connection has ended.
func (f *flow) open() bool {
	if !f.spend() {
		f.refuse(fault{reason: f.target.unlisted(), proto: f.proto, detail: "the approval is used up"})
		return false
	}
	if err := f.s.records.write(f.record(control.Allow, "", "")); err != nil {
		f.answer(fault{reason: policy.Unrecorded, proto: f.proto})
		return false
	}
	f.recorded = true
	ctx := f.ctx
	if f.proto != "tcp" {
		ctx = context.WithValue(ctx, bytesInHand{}, true)
	}
	up, fail := f.s.connect(ctx, f.target, f.inForce)
	if fail == nil && f.connected(up) {
		return true
	}
	f.mu.Lock()
	cut := f.cut
	if fail != nil {
		f.addr = fail.addr
	}
	f.mu.Unlock()
	switch {
	case cut != "":
		f.finish()
	case fail == nil: // the conversation is over
	case fail.reason == "":
		f.s.records.note(f.record(control.Fail, "", fail.detail))
		f.answerFailed(fail)
	default:
		f.refuse(fault{reason: fail.reason, detail: fail.detail, proto: f.proto})
	}
	return false
}

// connected takes the server's connection over, unless the flow was cut. Rules
// that changed while it was being dialed have not seen its address.
func (f *flow) connected(up *dialed) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addr = up.to
	if !f.gone && up.to.IsValid() && !f.s.guard.permits(f.verdict, up.to, time.Now()) {
		f.cut = policy.Revoked
		f.abortLocked()
	}
	if f.gone {
		reset(up.TCPConn)
		return false
	}
	f.up = up.TCPConn
	f.meter = &meter{f: f, to: f.up, most: f.verdict.uploads()}
	return true
}

// end ends an open connection for a reason that its record tells.
func (f *flow) end(reason policy.Reason, detail string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(reason, detail)
}

func (f *flow) endLocked(reason policy.Reason, detail string) {
	if f.cut == "" {
		f.cut, f.detail = reason, detail
	}
	f.abortLocked()
}

// abort resets both ends. What blocks on them returns.
func (f *flow) abort() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.abortLocked()
}

func (f *flow) abortLocked() {
	if f.gone {
		return
	}
	f.gone = true
	if f.cancel != nil {
		f.cancel()
	}
	reset(f.c)
	if f.up != nil {
		reset(f.up)
	}
}

// finish records the end. Whoever reads the record finds room for another.
func (f *flow) finish() {
	f.s.flows.remove(f)
	f.mu.Lock()
	cut, detail := f.cut, f.detail
	f.mu.Unlock()
	verdict := control.End
	if cut != "" {
		verdict = control.Cut
	}
	f.s.records.note(f.record(verdict, cut, detail))
}

// close lets go of everything.
func (f *flow) close() {
	f.waited()
	f.c.Close()
	f.mu.Lock()
	up := f.up
	f.served = false
	f.watchIdle()
	f.mu.Unlock()
	if up != nil {
		up.Close()
	}
	f.unname()
}

func (f *flow) unname() {
	if f.named {
		f.s.pool.Close(f.dst.Addr())
	}
}

// record describes the connection as it is now.
func (f *flow) record(verdict control.Verdict, reason policy.Reason, detail string) control.Record {
	f.mu.Lock()
	addr, where, would, generation := f.addr, f.verdict.where, f.verdict.would, f.verdict.generation
	var sent int64
	if f.meter != nil {
		sent = f.meter.sent.Load()
	}
	f.mu.Unlock()
	r := control.Record{
		Verdict: verdict, Proto: f.proto, Host: f.target.name(), Port: f.target.port,
		Addr: addr, Src: f.src, Dst: f.dst, Reason: string(reason), Detail: detail,
		Rule: where, Generation: generation,
		Request: f.request, Method: f.method,
	}
	if verdict == control.Allow {
		r.Would = string(would)
	}
	if f.target.host == "" && !r.Addr.IsValid() {
		r.Addr = f.dst
	}
	if verdict != control.Allow && verdict != control.Refuse {
		r.Sent, r.Got, r.Lasted = sent, f.got, time.Since(f.started)
	}
	return r
}
