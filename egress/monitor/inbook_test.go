package monitor

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/limits"
	"nemoclaw/egress/netfilter"
)

// shelf is a book, and the lines that it wrote.
type shelf struct {
	*testing.T
	book
	lines []*audit.Network
	fault error
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{T: t}
	s.book = newBook("web", inboundRule("all"), func(list ...audit.Entry) error {
		if s.fault != nil {
			return s.fault
		}
		for _, e := range list {
			n := e.(*audit.Network)
			if n.Connection.DirectionID != audit.Inbound || n.Rule.Name != "network.ingress: all" || n.Unmapped.Generation != ingressGeneration {
				t.Errorf("a line that is none about a connection from outside: %+v", n)
			}
			s.lines = append(s.lines, n)
		}
		return nil
	})
	return s
}

// took returns the lines since it was called last.
func (s *shelf) took() []*audit.Network {
	lines := s.lines
	s.lines = nil
	return lines
}

// one returns the only line since took was called last.
func (s *shelf) one(verdict, reason string) *audit.Network {
	s.Helper()
	lines := s.took()
	if len(lines) != 1 || lines[0].Unmapped.Verdict != verdict || lines[0].Unmapped.Reason != reason {
		s.Fatalf("%d lines, the first of which is %+v; want one: %s %s", len(lines), lines, verdict, reason)
	}
	return lines[0]
}

var epoch = time.Unix(1_800_000_000, 0)

// call is the nth connection to port 80, as far as state.
func call(n int, state netfilter.State) *netfilter.Flow {
	return &netfilter.Flow{
		ID: uint32(1000 + n), Proto: unix.IPPROTO_TCP, State: state,
		From: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), uint16(2000+n)), To: netip.MustParseAddrPort("172.17.0.2:80"),
	}
}

// over is its end: it has lasted two seconds and carried 3 and 4 packets.
func over(n int) *netfilter.Flow {
	f := call(n, netfilter.TimeWait)
	f.Over, f.Status = true, 1<<1|1<<2
	f.In, f.Out = netfilter.Count{Packets: 3, Bytes: 300}, netfilter.Count{Packets: 4, Bytes: 4000}
	f.Start, f.Stop = epoch, epoch.Add(2*time.Second)
	return f
}

func (s *shelf) heardAll(flows ...*netfilter.Flow) (forget int) {
	for _, f := range flows {
		if s.heard(f) {
			forget++
		}
	}
	return forget
}

// A connection is a line when both ends have shaken hands and one when it is
// over, however many states it goes through, and they belong together.
func TestInboundConnection(t *testing.T) {
	s := newShelf(t)
	s.heardAll(call(1, netfilter.SynReceived), call(1, netfilter.Established))
	begin := s.one("allow", "")
	if begin.ActivityID != audit.ActivityOpen || begin.Src.IP != "203.0.113.9" || begin.Src.Port != 2001 || begin.Dst.IP != "172.17.0.2" || begin.Dst.Port != 80 ||
		begin.Connection.ProtocolNum != 6 || begin.StartTime == 0 {
		t.Errorf("the first line: %+v", begin)
	}
	if s.heardAll(call(1, netfilter.FinWait), call(1, netfilter.LastAck)); s.leave(time.Now()) != nil {
		t.Error("the kernel is to forget it before it is over")
	}
	s.heardAll(call(1, netfilter.TimeWait), call(1, netfilter.TimeWait))
	if !s.busy(false) || s.leave(time.Now().Add(-time.Hour)) != nil {
		t.Error("the kernel is to forget it at once, or never")
	}
	if left := s.leave(time.Now()); len(left) != 1 || endsOf(left[0]) != endsOf(call(1, 0)) || left[0].ID != 1001 {
		t.Errorf("the kernel is to forget %+v", left)
	}
	s.heardAll(over(1))
	end := s.one("end", "")
	if want := (audit.Traffic{In: 300, Out: 4000, PacketsIn: 3, PacketsOut: 4}); end.Metadata.UID != begin.Metadata.UID || *end.Traffic != want || end.StartTime != epoch.UnixMilli() {
		t.Errorf("the last line: %+v, %+v", end, end.Traffic)
	}
	// Without a word of its states, the kernel's times count.
	s.heardAll(call(2, netfilter.Established))
	s.took()
	s.heardAll(over(2))
	if end := s.one("end", ""); end.Duration != 2000 {
		t.Errorf("it lasted %d ms", end.Duration)
	}
	s.flush(0)
	if got := s.took(); len(got) != 0 || len(s.open)+s.others != 0 {
		t.Errorf("later: %+v", got)
	}
}

// A connection that does not come about is one line that says why.
func TestInboundFailure(t *testing.T) {
	reset := over(1)
	reset.Status, reset.State, reset.Out.Packets = 0, netfilter.Closed, 1
	silent := over(2)
	silent.Status, silent.State, silent.Out = 0, netfilter.SynSent, netfilter.Count{}
	left := over(3)
	left.Status, left.State = 1<<1, netfilter.SynReceived
	for reason, f := range map[string]*netfilter.Flow{portClosed: reset, noAnswer: silent, notFinished: left} {
		s := newShelf(t)
		s.heardAll(f)
		if n := s.one("fail", reason); n.ActivityID != audit.ActivityFail || n.Traffic.PacketsIn != 3 {
			t.Errorf("%s: %+v", reason, n)
		}
	}
}

// However many there are, lines are few, and none is lost in the sum.
func TestInboundFlood(t *testing.T) {
	const many = 10_000
	s := newShelf(t)
	for i := range many {
		s.heardAll(call(i, netfilter.Established), call(i, netfilter.FinWait))
	}
	for i := range many {
		s.heardAll(over(i))
		failed := over(i)
		failed.Status, failed.State = 0, netfilter.SynSent
		failed.To = netip.AddrPortFrom(failed.To.Addr(), uint16(i)) // each to another port
		s.heardAll(failed)
	}
	s.flush(0)
	lines := s.took()
	if most := 2*limits.InboundLines + limits.FoldKey + limits.InboundFolds + 2; len(lines) > most {
		t.Errorf("%d lines, want at most %d", len(lines), most)
	}
	sums := map[string]int{}
	bytes := map[string]int64{}
	for _, n := range lines {
		sums[n.Unmapped.Verdict] += max(n.Count, 1)
		if n.Traffic != nil {
			bytes[n.Unmapped.Verdict] += n.Traffic.Out
		}
	}
	for _, verdict := range []string{"allow", "end", "fail"} {
		if sums[verdict] != many || verdict != "allow" && bytes[verdict] != 4000*many {
			t.Errorf("%s: %d connections, %d bytes", verdict, sums[verdict], bytes[verdict])
		}
	}
	if s.others != 0 || len(s.open) != 0 || s.counts().decisions[decided{"end", ""}] != many {
		t.Errorf("afterwards %d and %d are open", len(s.open), s.others)
	}
}

// More than are told apart at once are counted, and so are their ends.
func TestInboundTableIsBounded(t *testing.T) {
	s := newShelf(t)
	for i := range 2 * limits.Inbound {
		s.heardAll(call(i, netfilter.Established))
		s.begun = 0 // slowly
	}
	if len(s.open) != limits.Inbound || s.others != limits.Inbound || s.counts().open != 2*limits.Inbound {
		t.Errorf("%d are told apart, %d counted", len(s.open), s.others)
	}
	s.took()
	for i := range 2 * limits.Inbound {
		f := over(i)
		f.Over, f.State, f.Stop = false, netfilter.Established, time.Time{}
		s.endNow(f)
	}
	s.endRest()
	s.flush(0)
	var ended int
	var bytes int64
	for _, n := range s.took() {
		if n.Unmapped.Verdict == "end" {
			ended += max(n.Count, 1)
			bytes += n.Traffic.In
		}
	}
	if ended != 2*limits.Inbound || bytes != 300*2*limits.Inbound {
		t.Errorf("at the end %d with %d bytes", ended, bytes)
	}
}

// After something was not heard it is known what is open, and what is not heard
// of until the sandbox's end is not silently so.
func TestInboundUnheard(t *testing.T) {
	s := newShelf(t)
	s.heardAll(call(1, netfilter.Established), call(2, netfilter.Established))
	s.took()
	datagrams := call(5, 0)
	datagrams.Proto = unix.IPPROTO_UDP
	live := []*netfilter.Flow{call(2, netfilter.Established), call(3, netfilter.FinWait), datagrams}
	if n := s.compare(live); n != 2 || s.counts().open != 4 {
		t.Errorf("%d are open that no line has told of, and %d in all", n, s.counts().open)
	}
	if n := s.compare(live); n != 0 {
		t.Errorf("once more there are %d", n)
	}
	s.endNow(call(2, netfilter.Established))
	s.endRest()
	if lines := s.took(); len(lines) != 2 || lines[1].Src.Port != 2001 || lines[1].Traffic != nil || lines[1].Unmapped.Detail == "" || lines[1].StatusID != 2 {
		t.Errorf("the end that was not heard: %+v", lines)
	}
}

// Another connection between the same ends is another one, also while the end of
// the first is still to be told.
func TestInboundSameEnds(t *testing.T) {
	s := newShelf(t)
	again := call(1, netfilter.Established)
	again.ID++
	s.heardAll(call(1, netfilter.Established), again, over(1))
	lines := s.took()
	if len(lines) != 3 || lines[2].Unmapped.Verdict != "end" || lines[2].Metadata.UID != lines[0].Metadata.UID || lines[1].Metadata.UID == lines[0].Metadata.UID || len(s.open) != 1 {
		t.Errorf("%d are open; the log has %+v", len(s.open), lines)
	}
}

// What cannot be written down does not go on.
func TestInboundUnrecorded(t *testing.T) {
	s := newShelf(t)
	s.fault = errors.New("no room")
	if s.heardAll(call(1, netfilter.Established)) != 1 || len(s.open) != 0 {
		t.Error("it goes on, unrecorded")
	}
	s.fault = nil
	if s.heardAll(call(2, netfilter.Established)) != 0 || len(s.took()) != 1 {
		t.Error("the next one does not")
	}
}

// Of refusals the kernel tells some and counts all; its count may come before
// what it tells.
func TestInboundRefusals(t *testing.T) {
	s := newShelf(t)
	r := &netfilter.Packet{Proto: unix.IPPROTO_UDP, From: netip.MustParseAddrPort("203.0.113.9:4000"), To: netip.MustParseAddrPort("172.17.0.2:53")}
	for range 20 {
		s.refused(r)
	}
	s.flush(51) // 20 told, one more on its way
	if lines := s.took(); len(lines) != 20 || lines[0].Src.IP != "203.0.113.9" || lines[0].ActivityID != audit.ActivityRefuse || lines[0].Connection.ProtocolName != "udp" {
		t.Fatalf("%d lines, the first %+v", len(lines), lines[0])
	}
	s.refused(r)
	s.one("refuse", notAdmitted)
	if !s.busy(false) {
		t.Error("it forgets that some are in no line")
	}
	s.flush(0)
	if n := s.one("refuse", notAdmitted); n.Count != 30 || n.Src != nil {
		t.Errorf("the rest: %+v", n)
	}
	if s.flush(0); s.busy(false) || len(s.took()) != 0 {
		t.Error("it is not over")
	}
}
