package monitor

import (
	"fmt"
	"maps"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
	"nemoclaw/egress/limits"
	"nemoclaw/egress/netfilter"
)

// Why a connection from outside did not come about.
const (
	notAdmitted = "ingress"     // the policy does not let it in
	portClosed  = "port-closed" // nobody listens
	noAnswer    = "no-answer"   // whoever listens did not answer
	notFinished = "unfinished"  // the caller did not go on
)

// ingressGeneration is that of the rules by which connections come in: those of
// create, whatever the file says now.
const ingressGeneration = 1

// book turns what the kernel tells of connections from outside into lines. It
// knows each that has lines of its own, up to a number; the others it counts.
type book struct {
	id, rule string
	write    func(...audit.Entry) error

	open    map[ends]passing
	closing []leaving // of these, those that are over, the longest ago first
	others  int       // open, without lines of their own
	begun   int       // lines since the last flush
	failed  int
	folds   map[foldKey]*fold
	unsaid  int // packets that were refused and are in no line; below 0: lines of those that are not counted yet

	lost  uint64 // messages
	tally map[decided]uint64
	sent  uint64 // bytes, of connections that have ended
	got   uint64
}

// ends name a connection. Between the same two there may be another one already
// when the kernel tells the end of the first: only its number is another.
type ends struct {
	proto    uint8
	from, to netip.AddrPort
	id       uint32
}

// passing is an open connection with lines of its own.
type passing struct {
	begun time.Time
	ended time.Time // zero while it is open
}

// leaving is a connection that is over, of which the kernel has not told the end.
type leaving struct {
	ends
	at time.Time
}

// foldKey is what connections are counted by that have no lines of their own.
type foldKey struct {
	verdict control.Verdict
	reason  string
	proto   uint8
	to      netip.AddrPort
}

type fold struct {
	n       int
	in, out netfilter.Count
}

// flow is all that is known of a connection of which the kernel tells nothing.
func (e ends) flow() *netfilter.Flow {
	return &netfilter.Flow{ID: e.id, Proto: e.proto, From: e.from, To: e.to}
}

func newBook(id, rule string, write func(...audit.Entry) error) book {
	return book{id: id, rule: rule, write: write, open: map[ends]passing{}, folds: map[foldKey]*fold{}, tally: map[decided]uint64{}}
}

func endsOf(f *netfilter.Flow) ends { return ends{f.Proto, f.From, f.To, f.ID} }

// heard takes what the kernel tells of a connection, and says whether it is to
// be cut, because it cannot be written down.
func (b *book) heard(f *netfilter.Flow) (cut bool) {
	at := endsOf(f)
	known, ok := b.open[at]
	switch {
	case f.Over && ok:
		delete(b.open, at)
		b.end(f, known)
	case f.Over && f.Proto == unix.IPPROTO_TCP && !f.Agreed():
		b.fail(f)
	case f.Over:
		b.others = max(b.others-1, 0)
		b.fold(control.End, "", f)
	case ok && f.State.Done() && known.ended.IsZero():
		known.ended = time.Now()
		b.open[at] = known
		b.closing = append(b.closing, leaving{at, known.ended})
	case !ok && (f.Proto == unix.IPPROTO_UDP || f.State == netfilter.Established):
		return !b.begin(f, "")
	}
	return false
}

// leave returns the connections that were over before, which the kernel is to
// forget: then it tells their ends, for which it would wait for minutes. Not at
// once, since the last packets of either side may still be on their way.
func (b *book) leave(before time.Time) (over []*netfilter.Flow) {
	for len(b.closing) > 0 && !b.closing[0].at.After(before) {
		l := b.closing[0]
		b.closing = b.closing[1:]
		if _, ok := b.open[l.ends]; ok {
			over = append(over, l.flow())
		}
	}
	return over
}

// begin writes a connection's first line, and says whether it may go on.
func (b *book) begin(f *netfilter.Flow, detail string) bool {
	if len(b.open) >= limits.Inbound || b.begun >= limits.InboundLines {
		b.others++
		b.fold(control.Allow, "", f)
		return true
	}
	b.begun++
	begun := f.Start
	if begun.IsZero() {
		begun = time.Now()
	}
	n := b.line(control.Allow, "", f)
	n.StartTime = begun.UnixMilli()
	n.Unmapped.Detail = detail
	if b.write(n) != nil { // its fault shows in Status
		return false
	}
	b.count(control.Allow, "", 1)
	b.open[endsOf(f)] = passing{begun: begun}
	return true
}

// end writes its last line.
func (b *book) end(f *netfilter.Flow, known passing) {
	n := b.line(control.End, "", f)
	begun, stop := known.begun, known.ended
	if !f.Start.IsZero() {
		begun = f.Start
	}
	if stop.IsZero() {
		stop = f.Stop
	}
	if stop.IsZero() {
		stop = time.Now()
	}
	n.StartTime, n.Duration = begun.UnixMilli(), max(stop.Sub(begun).Milliseconds(), 0)
	n.Traffic = traffic(f.In, f.Out)
	b.carried(f)
	b.count(control.End, "", 1)
	_ = b.write(n) // its fault shows in Status
}

// unseen ends a connection whose end the kernel has not told yet.
func (b *book) unseen(at ends) {
	known := b.open[at]
	delete(b.open, at)
	n := b.line(control.End, "", at.flow())
	n.StartTime = known.begun.UnixMilli()
	n.StatusID = 2
	n.Unmapped.Detail = "what the kernel says of its end, and of its bytes, was not heard"
	b.count(control.End, "", 1)
	_ = b.write(n)
}

// fail writes down a connection that did not come about.
func (b *book) fail(f *netfilter.Flow) {
	reason := notFinished
	switch {
	case f.Answered():
	case f.Out.Packets > 0:
		reason = portClosed // a reset is no answer
	default:
		reason = noAnswer
	}
	if b.failed++; b.failed > limits.FoldKey {
		b.fold(control.Fail, reason, f)
		return
	}
	n := b.line(control.Fail, reason, f)
	n.Traffic = traffic(f.In, f.Out)
	b.carried(f)
	b.count(control.Fail, reason, 1)
	_ = b.write(n)
}

// refused writes down what the policy does not let in. The kernel tells of some,
// and counts all: flush.
func (b *book) refused(p *netfilter.Packet) {
	b.unsaid--
	n := b.line(control.Refuse, notAdmitted, &netfilter.Flow{Proto: p.Proto, From: p.From, To: p.To})
	n.Metadata.UID = ""
	b.count(control.Refuse, notAdmitted, 1)
	_ = b.write(n)
}

// fold counts a connection that has no line of its own.
func (b *book) fold(verdict control.Verdict, reason string, f *netfilter.Flow) {
	key := foldKey{verdict, reason, f.Proto, f.To}
	if b.folds[key] == nil {
		if len(b.folds) >= limits.InboundFolds {
			key = foldKey{verdict: verdict}
		}
		if b.folds[key] == nil {
			b.folds[key] = new(fold)
		}
	}
	to := b.folds[key]
	to.n++
	b.count(verdict, reason, 1)
	if verdict != control.Allow {
		to.in.Packets, to.in.Bytes = to.in.Packets+f.In.Packets, to.in.Bytes+f.In.Bytes
		to.out.Packets, to.out.Bytes = to.out.Packets+f.Out.Packets, to.out.Bytes+f.Out.Bytes
		b.carried(f)
	}
}

// flush writes down what was counted. refused are the packets that the kernel has
// counted since the last time: it may still tell of some, so that those that are
// in no line become one the next time.
func (b *book) flush(refused int) {
	for key, s := range b.folds {
		n := b.line(key.verdict, key.reason, &netfilter.Flow{Proto: key.proto, To: key.to})
		n.Metadata.UID, n.Count = "", s.n
		if key.verdict != control.Allow {
			n.Traffic = traffic(s.in, s.out)
		}
		_ = b.write(n)
	}
	if b.unsaid > 0 {
		n := b.line(control.Refuse, notAdmitted, new(netfilter.Flow))
		n.Metadata.UID, n.Count = "", b.unsaid
		b.count(control.Refuse, notAdmitted, b.unsaid)
		b.unsaid = 0
		_ = b.write(n)
	}
	b.unsaid = max(b.unsaid+refused, 0) // the count is lost with rules that are loaded anew
	clear(b.folds)
	b.begun, b.failed = 0, 0
}

// busy tells whether there is something to flush.
func (b *book) busy(gap bool) bool {
	return gap || len(b.folds) > 0 || len(b.closing) > 0 || b.begun > 0 || b.failed > 0 || b.unsaid != 0
}

// compare takes which connections are open, after something was not heard, and
// returns of how many of them no line has told.
func (b *book) compare(live []*netfilter.Flow) (unknown int) {
	others := 0
	for _, f := range live {
		if _, ok := b.open[endsOf(f)]; !ok {
			others++
		}
	}
	unknown = max(others-b.others, 0)
	b.others = others
	return unknown
}

// endNow ends a connection that the kernel still knows, and of which nothing more
// will be heard.
func (b *book) endNow(f *netfilter.Flow) {
	at := endsOf(f)
	known, ok := b.open[at]
	switch {
	case ok:
		delete(b.open, at)
		b.end(f, known)
	case f.Proto == unix.IPPROTO_TCP && !f.Agreed():
		b.fail(f)
	default:
		b.fold(control.End, "", f)
	}
}

// endRest ends those of which nothing was heard.
func (b *book) endRest() {
	for at := range b.open {
		b.unseen(at)
	}
	b.others = 0
}

// line is a line about a connection, or about several: an end or a protocol that
// f does not have is left out.
func (b *book) line(verdict control.Verdict, reason string, f *netfilter.Flow) *audit.Network {
	o := outcomes[verdict]
	n := audit.NewNetwork(b.id, o.activity)
	n.ActionID, n.DispositionID, n.SeverityID, n.StatusID = o.action, o.disposition, o.severity, o.status
	n.Metadata.UID = fmt.Sprintf("in-%x-%x", f.ID, f.From.Port())
	n.Src, n.Dst = endpoint("", f.From, 0), endpoint("", f.To, 0)
	if n.Dst == nil { // of many
		n.Dst = &audit.Endpoint{UID: b.id}
	}
	n.Connection = &audit.Connection{ProtocolName: "ip", ProtocolNum: audit.OtherProtocol, DirectionID: audit.Inbound}
	if f.Proto != 0 {
		n.Connection.ProtocolName, n.Connection.ProtocolNum = control.ProtoName(int(f.Proto)), int(f.Proto)
	}
	n.Rule = &audit.Rule{Name: b.rule}
	n.Unmapped = audit.NetworkMore{Verdict: string(verdict), Reason: reason, Generation: ingressGeneration}
	return n
}

func traffic(in, out netfilter.Count) *audit.Traffic {
	return &audit.Traffic{In: int64(in.Bytes), Out: int64(out.Bytes), PacketsIn: int64(in.Packets), PacketsOut: int64(out.Packets)}
}

func (b *book) count(verdict control.Verdict, reason string, n int) {
	b.tally[decided{string(verdict), reason}] += uint64(n)
}

func (b *book) carried(f *netfilter.Flow) {
	b.got += f.In.Bytes
	b.sent += f.Out.Bytes
}

// inboundCounts are what is known of connections from outside, in numbers.
type inboundCounts struct {
	decisions map[decided]uint64
	open      int
	sent, got uint64 // bytes
	lost      uint64 // messages
}

func (b *book) counts() inboundCounts {
	return inboundCounts{maps.Clone(b.tally), len(b.open) + b.others, b.sent, b.got, b.lost}
}
